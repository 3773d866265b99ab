"""Clips as strips: which frames are shown, and what is said of each, against clips whose frames carry their number."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from mmalign.corrupt import apply, corruption_names
from mmalign.media.read import MediaLimits
from mmalign.report.damage import CLAUSES, all_in_words, in_clip_words
from mmalign.report.pictures import FRAME_SIDES, Gallery
from mmalign.report.strips import MOST_FRAMES, Strip, box_of, clock, origins_of, picked, strip, strip_of
from mmalign.types import Clip, Corruption, Frames, MediaRef
from tests.report.synthetic_clips import DAMAGES, damaged, opened
from tests.report.synthetic_run import photograph

ORDERS = [name for name in DAMAGES if name not in ("box_mask", "gaussian_noise")]


def numbered(num: int, name: str = "a.mp4", blue: int = 0) -> Clip:
    """A clip of flat frames whose red level is their place; four frames a second."""
    times = tuple(place / 4 for place in range(num))
    images = tuple(Image.new("RGB", (40, 30), (place, 0, blue)) for place in range(num))
    return Clip(images, times, MediaRef(name, "video", frames=Frames(tuple(range(num)), times, 4.0, num)))


def shown(clip: Clip) -> Strip:
    return strip_of(clip, Gallery(Path(), MediaLimits()))


def done(clip: Clip, name: str, **params: object) -> Clip:
    return apply(clip, Corruption(name, params))


@given(st.integers(1, 400), st.integers(2, 20))
def test_picked_places_are_even_and_reach_both_ends(num: int, most: int) -> None:
    places = picked(num, most)
    assert len(places) == min(num, most)
    assert (places[0], places[-1]) == (0, num - 1)
    steps = {after - before for before, after in itertools.pairwise(places)}
    assert min(steps, default=1) >= 1
    assert max(steps, default=1) - min(steps, default=1) <= 1


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), num=st.integers(2, 40))
def test_places_are_said_as_the_pixels_have_them(name: str, seed: int, num: int) -> None:
    after = damaged(numbered(num), name, numbered(num, "b.mp4", blue=255), seed)
    levels = [image.getpixel((0, 0)) for image in after.images]
    assert origins_of(after, num) == [None if level[2] else level[0] for level in levels]
    for slot in shown(after).slots:
        if slot.picture and slot.said != "other clip" and " → " not in slot.place:
            origin = int(slot.place) - 1
            place = origin if len(after.images) == num else [level[0] for level in levels].index(origin)
            assert levels[place][0] == origin
            assert slot.time == clock(numbered(num).times)[origin]


def test_shuffled_frames_carry_the_place_that_they_came_from() -> None:
    slots = shown(done(numbered(4), "global_shuffle", seed=0, frames=[2, 1, 3, 0])).slots
    assert [(slot.place, slot.said) for slot in slots] == [
        ("3 → 1", "moved"),
        ("2", ""),
        ("4 → 3", "moved"),
        ("1 → 4", "moved"),
    ]
    assert [slot.time for slot in slots] == ["0.00\u00a0s", "0.25\u00a0s", "0.50\u00a0s", "0.75\u00a0s"]
    assert slots[0].alt == "Place 1 at 0.00\u00a0s: here stands frame 3 of the clip"


def test_damages_one_after_the_other_are_followed_to_the_first_clip() -> None:
    twice = done(done(numbered(4), "reverse", frames=[3, 2, 1, 0]), "drop_frames", frames=[0, 3])
    assert origins_of(twice, 4) == [3, 0]
    assert [slot.place for slot in shown(twice).slots] == ["4 → 1", "1 → 2"]


def test_dropped_frames_leave_gaps_with_their_times() -> None:
    slots = shown(done(numbered(6), "drop_frames", frames=[1, 5])).slots
    assert [(slot.place, slot.said, bool(slot.picture)) for slot in slots] == [
        ("1", "dropped", False),
        ("2", "", True),
        ("3 to 5", "dropped", False),
        ("6", "", True),
    ]
    assert slots[2].time == "0.50\u00a0s to 1.00\u00a0s"
    assert slots[2].alt == "3 frames, 3 to 5, from 0.50\u00a0s to 1.00\u00a0s, are dropped"


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60).flatmap(lambda num: st.tuples(st.just(num), st.sets(st.integers(0, num - 1), min_size=1))))
def test_every_dropped_frame_is_in_one_gap(drawn: tuple[int, set[int]]) -> None:
    num, kept = drawn
    if len(kept) == num:
        kept = kept - {0}
    found = shown(done(numbered(num), "block_drop", frames=sorted(kept)))
    assert found.num_shown == min(len(kept), MOST_FRAMES)
    counted = 0
    for slot in found.slots:
        if not slot.picture:
            count = slot.alt.split(" frames, ")[0]
            counted += int(count) if count.isdigit() else 1
    assert counted == num - len(kept)


def test_frozen_frames_are_said_to_be() -> None:
    slots = shown(done(numbered(5), "freeze", frames=[0, 1, 1, 1, 4])).slots
    assert [slot.said for slot in slots] == ["", "", "frozen", "frozen", ""]
    assert slots[3].place == "2 → 4"


def test_frames_of_another_clip_are_said_to_be(tmp_path: Path) -> None:
    other = numbered(4, "b.mp4", blue=200)
    swapped = damaged(numbered(4), "clip_swap", other, seed=3)
    params = swapped.ref.corruptions[0].params
    part = range(params["start"], params["stop"])
    assert [slot.said == "other clip" for slot in shown(swapped).slots] == [place in part for place in range(4)]
    assert all_in_words(swapped.ref).endswith("from another clip (b.mp4)")


@settings(max_examples=40, deadline=None)
@given(area=st.floats(0.01, 1), x=st.floats(0, 1), y=st.floats(0, 1))
def test_the_box_is_where_the_pixels_changed_also_after_a_shuffle(area: float, x: float, y: float) -> None:
    clean = numbered(2)
    covered = done(clean, "box_mask", area=area, x=x, y=y, level=245)
    box = box_of(done(covered, "reverse", frames=[1, 0]))
    left, top, right, bottom = ImageChops.difference(clean.images[0], covered.images[0]).getbbox() or (0, 0, 0, 0)
    assert box == pytest.approx((left / 40, top / 30, (right - left) / 40, (bottom - top) / 30))
    assert all(slot.box == box and "painted over" in slot.alt for slot in shown(covered).slots)
    assert box_of(clean) is None


def test_every_damage_of_clips_has_a_clause_of_its_own() -> None:
    of_clips = set(corruption_names("video")) - set(corruption_names("image"))
    assert of_clips <= set(CLAUSES)
    assert set(CLAUSES) <= set(corruption_names("video"))
    for name in DAMAGES:
        said = all_in_words(damaged(numbered(8), name, numbered(8, "b.mp4", blue=9), seed=1).ref)
        assert ("every frame: " in said) == (name == "gaussian_noise")
        assert not said.startswith(name.replace("_", " "))


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        (
            "box_mask",
            {"area": 0.31},
            "a square box of 31\u00a0% of the frame is painted over, at one place in all frames",
        ),
        ("drop_frames", {"frames": [0, 3]}, "all frames but 2 are dropped; they keep their times"),
        ("block_drop", {"frames": [3], "ratio": 8}, "all frames but 1 are dropped; it keeps its time (ratio 8)"),
        ("freeze", {"frames": [0, 1, 1, 1]}, "the picture stands still at frame 2 for 2 more frames"),
        ("speed", {"factor": 2.5}, "the clip runs 2.5 times as fast, then stands still at its end"),
        ("speed", {"factor": 0.4}, "the clip runs at 40\u00a0% of its speed and is cut off"),
        ("freeze", {"share": 0.5, "at": 1.0}, "freeze (share 0.5, at 1)"),
    ],
)
def test_clauses_by_hand(name: str, params: dict[str, object], said: str) -> None:
    assert in_clip_words(Corruption(name, params)) == said


def test_times_have_the_digits_that_they_need() -> None:
    assert clock([0.0, 0.4, 0.8]) == ["0.0\u00a0s", "0.4\u00a0s", "0.8\u00a0s"]
    assert clock([0.0, 0.25, 0.5]) == ["0.00\u00a0s", "0.25\u00a0s", "0.50\u00a0s"]
    assert clock([0.0, 7.033, 14.067]) == ["0.0\u00a0s", "7.0\u00a0s", "14.1\u00a0s"]


def test_a_damage_recorded_in_a_file_is_done_again_to_the_same_strip(tmp_path: Path) -> None:
    after = damaged(opened(tmp_path, 0), "local_shuffle", opened(tmp_path, 1))
    gallery = Gallery(tmp_path, MediaLimits())
    assert strip(after.ref, gallery) == strip_of(after, gallery)
    clean = strip(replace(after.ref, corruptions=()), gallery)
    assert {slot.picture for slot in clean.slots} == {slot.picture for slot in strip_of(after, gallery).slots}
    assert clean.damage == ""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone.mp4", "Clip not found: gone.mp4"),
        ("../a.mp4", "Clip cannot be shown: ../a.mp4"),
        ("text.mp4", "Clip cannot be shown: text.mp4: holds text, not a video"),
        ("broken.mp4", "Clip cannot be shown: broken.mp4: "),
    ],
)
def test_a_clip_that_cannot_be_opened_is_a_line(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)))
    found = strip(MediaRef(path, "video"), Gallery(tmp_path, MediaLimits()))
    assert found.slots == ()
    assert found.label.startswith(said)
    assert "\n" not in found.label


def test_frames_shrink_with_their_number_and_equal_ones_are_kept_once() -> None:
    gallery = Gallery(Path(), MediaLimits())
    frames = [photograph(seed) for seed in range(4)]
    keys = [gallery.add_frame(frame, "a") for frame in (*frames, *frames)]
    assert keys[:4] == keys[4:]
    assert len(set(keys)) == 4
    large = gallery.thumbnails()
    assert {found.width for found in large.values()} == {FRAME_SIDES[0]}
    # Every frame stands twice on the page, so twice its bytes are in it.
    size = sum(len(found.url) for found in large.values())
    assert {found.width for found in gallery.thumbnails(2 * size).values()} == {FRAME_SIDES[0]}
    assert max(found.width for found in gallery.thumbnails(2 * size - 1).values()) < FRAME_SIDES[0]
    assert {found.width for found in gallery.thumbnails(1).values()} == {FRAME_SIDES[-1]}


def test_frames_of_drawn_clips_keep_their_pixels_until_there_are_too_many(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, MediaLimits())
    for place in picked(8):
        gallery.add_frame(opened(tmp_path).images[place], "a")
    assert all(found.url.startswith("data:image/png") and found.is_tiny for found in gallery.thumbnails().values())
    small = gallery.thumbnails(30_000)
    assert sum(len(found.url) for found in small.values()) <= 30_000
    assert all(found.url.startswith("data:image/webp") for found in small.values())
    assert {(found.width, found.height, found.is_tiny) for found in small.values()} == {(256, 256, True)}
