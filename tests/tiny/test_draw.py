import numpy as np
import pytest

from mmalign.tiny import COLOURS, KINDS, PLACES, SIZES, Scene, Thing, blank, draw_clip, draw_scene, scenes
from mmalign.tiny.clips import clips, frames
from mmalign.tiny.draw import coverage, pixels


def one(kind: str, colour: str = "red", size: str = "big", place: str = "in the middle") -> Scene:
    return Scene((Thing(kind, colour, size, place),), "sea", tinted=False)


def test_a_picture_is_64_by_64_rgb_and_always_the_same():
    drawn = scenes(1, 0, "dev")[0]
    assert draw_scene(drawn).size == (64, 64)
    assert draw_scene(drawn).mode == "RGB"
    assert draw_scene(drawn).tobytes() == draw_scene(drawn).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_all_kinds_look_different(size):
    drawn = np.stack([pixels(one(kind, size=size)) for kind in KINDS]).astype(int)
    for at in range(len(KINDS)):
        away = np.abs(drawn - drawn[at]).sum((1, 2, 3))
        assert (away > 0).sum() == len(KINDS) - 1
        assert sorted(away)[1] > 5000


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour(colour):
    middle = pixels(one("house", colour))[37, 27]
    assert np.abs(middle.astype(int) - COLOURS[colour]).max() < 12


@pytest.mark.parametrize("place", PLACES)
def test_a_thing_stands_at_its_place(place):
    covered = coverage(Thing("sun", "red", "big", place))
    rows, columns = np.nonzero(covered > 0.5)
    row, column = divmod(PLACES.index(place), 3)
    assert abs(rows.mean() - (12, 32, 52)[row]) < 2
    assert abs(columns.mean() - (12, 32, 52)[column]) < 2


def test_a_blank_picture_shows_nothing():
    assert np.asarray(blank()).std() < 8
    assert blank("sea").tobytes() != blank("garden").tobytes()


@pytest.mark.parametrize("num", [8, 16])
def test_a_clip_begins_with_its_start_and_ends_with_its_end(num):
    for clip in clips(20, 0, "dev"):
        film = frames(clip, num)
        assert len(film) == num
        assert (film[0] == pixels(Scene(clip.start, clip.theme, clip.tinted, clip.grain))).all()
        assert (film[-1] == pixels(Scene(clip.states[-1], clip.theme, clip.tinted, clip.grain))).all()
        assert any((film[at] != film[0]).any() for at in range(num))
    assert draw_clip(clip, num)[0].size == (64, 64)
