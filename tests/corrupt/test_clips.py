"""Corruptions of clips: as rules for all of them, then each one by hand."""

from __future__ import annotations

import contextlib
import json
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmalign.corrupt import apply, corruption_names, draw, order, staged, swap, timing
from mmalign.corrupt.blocks import blocks, joined, reverse
from mmalign.corrupt.registry import frame_seed
from mmalign.errors import MediaError, RecipeError
from mmalign.types import Clip, Corruption, Media, MediaRef, Picture

ORDER = ["block_drop", "block_reverse", "block_shuffle", "drop_frames", "freeze", "global_shuffle", "local_shuffle"]
ORDER += ["reverse", "segment_shuffle", "speed"]
#: Those that keep every frame, in another order.
SHUFFLES = ["block_reverse", "block_shuffle", "global_shuffle", "local_shuffle", "reverse", "segment_shuffle"]
PICTURES = corruption_names("image")


@cache
def frame(look: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A frame whose look can be told from its pixels: noise of its own."""
    width, height = size
    return Image.fromarray(np.random.RandomState(look).randint(0, 256, (height, width, 3), np.uint8))


def clip(
    looks: Sequence[int], times: Sequence[float] | None = None, size: tuple[int, int] = (12, 10), path: str = "a.mp4"
) -> Clip:
    times = [place / 4 for place in range(len(looks))] if times is None else times
    return Clip(tuple(frame(look, size) for look in looks), tuple(times), MediaRef(path, "video", "0" * 64))


def looks_of(media: Clip) -> list[int]:
    return [known_frames()[image.tobytes()] for image in media.images]


@cache
def known_frames() -> dict[bytes, int]:
    return {frame(look).tobytes(): look for look in range(64)}


def pixels(media: Clip) -> list[tuple[tuple[int, int], bytes]]:
    return [(image.size, image.tobytes()) for image in media.images]


def screen(values: Sequence[int], times: Sequence[float], moments: Sequence[float]) -> list[int]:
    """What is on the screen at each moment: written anew for the test."""
    return [values[max(0, bisect_right(times, moment) - 1)] for moment in moments]


def used(media: Media) -> Corruption:
    return media.ref.corruptions[-1]


@st.composite
def lookses(draw_value: st.DrawFn) -> list[int]:
    """Looks of 1 to 20 frames: all different, few, or still but for one."""
    num = draw_value(st.integers(1, 20))
    kind = draw_value(st.sampled_from(["different", "few", "still", "one"]))
    if kind == "different":
        return list(range(num))
    if kind == "few":
        return draw_value(st.lists(st.integers(0, 1), min_size=num, max_size=num))
    looks = [0] * num
    if kind == "one":
        looks[draw_value(st.integers(0, num - 1))] = 1
    return looks


def test_names() -> None:
    assert [name for name in corruption_names("video") if name not in PICTURES] == sorted([*ORDER, "clip_swap"])
    assert "box_mask" in corruption_names("video")


@given(name=st.sampled_from(ORDER), looks=lookses(), seed=st.integers(0, 2**63))
@settings(max_examples=600, deadline=None)
def test_never_the_same_clip(name: str, looks: list[int], seed: int) -> None:
    source = clip(looks)
    drawn = draw(name, random.Random(seed))
    assert drawn == draw(name, random.Random(seed))
    json.dumps(drawn.to_row(), allow_nan=False)
    damaged = None
    with contextlib.suppress(MediaError):
        damaged = apply(source, drawn)
    if damaged is None:
        # Everything else finds a damage for every clip that moves; these two have one order for each clip and ratio,
        # and blocks that look alike have no other order.
        is_still = len(set(looks)) == 1
        if name == "reverse":
            assert looks == looks[::-1]
        elif name == "block_reverse":
            places = reverse(len(looks), drawn.params["ratio"]) if len(looks) > 1 else [0]
            assert looks == [looks[place] for place in places]
        elif name == "block_shuffle" and not is_still:
            size = max(1, len(looks) // drawn.params["ratio"])
            assert looks == looks[size:] + looks[:size]
        else:
            assert is_still
        return
    after = looks_of(damaged)
    assert screen(after, damaged.times, source.times) != looks
    assert list(damaged.times) == sorted(damaged.times)
    recorded = used(damaged)
    assert after == [looks[place] for place in recorded.params["frames"]]
    if name in SHUFFLES:
        assert Counter(recorded.params["frames"]) == Counter(range(len(looks)))
    if name in ("drop_frames", "block_drop"):
        assert damaged.times == tuple(source.times[place] for place in recorded.params["frames"])
        assert list(damaged.times) == sorted(set(damaged.times))
        assert len(after) < len(looks)
    else:
        assert damaged.times == source.times
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row(), allow_nan=False)))
    again = apply(source, ref.corruptions[0])
    assert pixels(again) == pixels(damaged)
    assert again.times == damaged.times
    assert again.ref.to_row() == damaged.ref.to_row()


@pytest.mark.parametrize(
    ("name", "ranges"),
    [(name, {"ratio": ratio}) for name in ORDER if "block" in name for ratio in (8, 4, 2)]
    + [(name, {}) for name in ORDER if "block" not in name],
)
def test_every_clip_that_moves_is_damaged_without_luck(name: str, ranges: dict[str, int]) -> None:
    # The fixed attempts alone, on all clips of two to six frames of two looks.
    with pytest.MonkeyPatch.context() as patch:
        for module in (order, staged, timing):
            patch.setattr(module, "REDRAWS", 0)
        for looks in (list(found) for num in range(2, 7) for found in product((0, 1), repeat=num)):
            drawn = draw(name, random.Random(len(looks)), **ranges)
            hidden = set(looks) == {0} or set(looks) == {1}
            if name == "reverse":
                hidden = looks == looks[::-1]
            elif name.startswith("block") and name != "block_drop":
                parts = blocks(len(looks), max(1, len(looks) // drawn.params["ratio"]))
                orders = [parts[::-1]] if name == "block_reverse" else permutations(parts)
                hidden = all([looks[place] for place in joined(parts)] == looks for parts in orders)
            if hidden:
                with pytest.raises(MediaError):
                    apply(clip(looks), drawn)
            else:
                damaged = apply(clip(looks), drawn)
                assert screen(looks_of(damaged), damaged.times, clip(looks).times) != looks


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("looks", [[3], [3] * 9])
def test_a_clip_that_stands_still_is_refused(name: str, looks: list[int]) -> None:
    message = rf"a\.mp4: cannot be corrupted by {name}, .* clip of {len(looks)} frames of 12x10 .*does it stand still"
    with pytest.raises(MediaError, match=message):
        apply(clip(looks), draw(name, random.Random(0)))


@pytest.mark.parametrize("name", [*ORDER, "clip_swap"])
def test_pictures_have_no_course_of_time(name: str) -> None:
    picture = Picture(frame(0), MediaRef("a.png"))
    with pytest.raises(RecipeError, match=rf"corruption {name}: is one of videos, a\.png is a picture"):
        apply(picture, draw(name, random.Random(0)))


@pytest.mark.parametrize("name", ORDER)
def test_drawn_parameters_do_on_clips_that_move(name: str) -> None:
    for seed in range(20):
        drawn = draw(name, random.Random(seed))
        params = used(apply(clip(range(16)), drawn)).params
        assert {key: params[key] for key in drawn.params} == dict(drawn.params)


def test_a_record_of_another_clip_is_refused() -> None:
    with pytest.raises(MediaError, match=r"a\.mp4: has 3 frames, its recorded damage names frame 7"):
        apply(clip(range(3)), Corruption("reverse", {"frames": [7, 1, 0]}))


# --- the order of time ---


@given(num=st.integers(2, 30), window=st.integers(2, 9), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_local_shuffles_stay_in_their_windows(num: int, window: int, seed: int) -> None:
    drawn = draw("local_shuffle", random.Random(seed), window=window)
    frames = used(apply(clip(range(num)), drawn)).params["frames"]
    assert [place // window for place in frames] == [place // window for place in range(num)]
    assert frames != list(range(num))


def test_local_windows_have_four_frames() -> None:
    frames = [
        used(apply(clip(range(10)), draw("local_shuffle", random.Random(seed)))).params["frames"] for seed in range(60)
    ]
    assert {place // 4 for order in frames for place in order[8:]} == {2}
    assert {order[0] for order in frames} == {0, 1, 2, 3}
    # Windows are shuffled each for itself: sometimes one keeps its order.
    assert any(order[8:] == [8, 9] for order in frames)
    assert any(order[8:] == [9, 8] for order in frames)


def test_wider_windows_only_where_nothing_moves_in_narrow_ones() -> None:
    damaged = apply(clip([0] * 4 + [1] * 4), draw("local_shuffle", random.Random(0)))
    assert used(damaged).params["window"] == 8
    assert looks_of(damaged) == [0, 0, 0, 1, 1, 1, 1, 0]
    assert used(apply(clip([0] * 4 + [1, 1, 2, 1]), draw("local_shuffle", random.Random(0)))).params["window"] == 4


def test_a_global_shuffle_is_not_backwards() -> None:
    orders = {tuple(looks_of(apply(clip(range(3)), draw("global_shuffle", random.Random(s))))) for s in range(80)}
    assert orders == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)}
    assert looks_of(apply(clip(range(2)), draw("global_shuffle", random.Random(0)))) == [1, 0]


def test_backwards() -> None:
    source = clip(range(5), [0.0, 0.1, 0.5, 0.6, 2.0])
    once = apply(source, draw("reverse", random.Random(0)))
    assert looks_of(once) == [4, 3, 2, 1, 0]
    assert once.times == source.times
    twice = apply(once, draw("reverse", random.Random(0)))
    assert looks_of(twice) == [0, 1, 2, 3, 4]
    assert [entry.name for entry in twice.ref.corruptions] == ["reverse", "reverse"]


@pytest.mark.parametrize(("num", "parts"), [(8, 4), (9, 4), (10, 3), (3, 6)])
def test_segments_change_places_as_a_whole(num: int, parts: int) -> None:
    cuts = [at * num // min(parts, num) for at in range(min(parts, num) + 1)]
    wanted = {tuple(range(start, stop)) for start, stop in pairwise(cuts)}
    for seed in range(20):
        drawn = draw("segment_shuffle", random.Random(seed), segments=(parts, parts))
        frames = used(apply(clip(range(num)), drawn)).params["frames"]
        found = {part for part in wanted if any(tuple(frames[at : at + len(part)]) == part for at in range(num))}
        assert found == wanted
        assert frames != list(range(num))


def test_finer_segments_where_longer_ones_look_alike() -> None:
    drawn = draw("segment_shuffle", random.Random(0), segments=[2, 2])
    damaged = apply(clip([0, 1, 0, 1]), drawn)
    assert used(damaged).params["segments"] == 4


# --- the course of time ---


@given(num=st.integers(2, 40), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_the_share_of_frames_is_dropped(num: int, seed: int) -> None:
    source = clip(range(num))
    drawn = draw("drop_frames", random.Random(seed))
    damaged = apply(source, drawn)
    assert 0.25 <= drawn.params["share"] <= 0.75
    assert len(damaged.images) == max(1, num - max(1, round(drawn.params["share"] * num)))
    places = looks_of(damaged)
    assert places == sorted(set(places))
    assert list(damaged.times) == [place / 4 for place in places]


def test_a_frame_like_the_one_before_is_not_missed() -> None:
    # Only the last frame moves: it must be among the dropped ones, or the only one that is kept.
    for seed in range(40):
        damaged = apply(clip([0] * 7 + [1]), draw("drop_frames", random.Random(seed)))
        assert set(looks_of(damaged)) in ({0}, {1})


def test_a_frozen_span() -> None:
    def frozen(share: float, at: float, num: int = 8) -> list[int]:
        return looks_of(apply(clip(range(num)), Corruption("freeze", {"share": share, "at": at})))

    assert frozen(0.5, 1.0) == [0, 1, 2, 3, 3, 3, 3, 3]
    assert frozen(0.5, 0.0) == [0, 0, 0, 0, 0, 5, 6, 7]
    assert frozen(0.25, 0.4) == [0, 1, 2, 2, 2, 5, 6, 7]
    assert frozen(1.0, 0.3) == [0] * 8
    assert frozen(0.25, 0.0, num=2) == [0, 0]


def test_half_the_freezes_last_to_the_end() -> None:
    rng = random.Random(0)
    ends = [draw("freeze", rng).params["at"] == 1.0 for _ in range(2000)]
    assert sum(ends) == pytest.approx(1000, abs=135)
    assert all(draw("freeze", rng, to_end=1).params["at"] == 1.0 for _ in range(20))
    assert not any(draw("freeze", rng, to_end=0.0).params["at"] == 1.0 for _ in range(20))


def test_a_longer_freeze_where_a_short_one_is_not_seen() -> None:
    damaged = apply(clip([0] * 7 + [1]), Corruption("freeze", {"share": 0.25, "at": 0.0}))
    assert looks_of(damaged) == [0] * 8
    assert used(damaged).params["share"] == 7 / 8


@pytest.mark.parametrize("start", [0.0, 0.033, 10.1])
@pytest.mark.parametrize("fps", [4, 10, 24, 29.97, 30])
@pytest.mark.parametrize("digits", [3, 9, 20])
def test_speed_at_a_constant_rate(fps: float, start: float, digits: int) -> None:
    # As files have them: seconds that do not begin at 0, rounded to milliseconds or just by floating point.
    times = [round(start + place / fps, digits) for place in range(9)]

    def sped(factor: float) -> list[int]:
        damaged = apply(clip(range(9), times), Corruption("speed", {"factor": factor}))
        assert list(damaged.times) == times
        assert used(damaged).params["factor"] == factor
        return looks_of(damaged)

    assert sped(2.0) == [0, 2, 4, 6, 8, 8, 8, 8, 8]
    assert sped(3.0) == [0, 3, 6, 8, 8, 8, 8, 8, 8]
    assert sped(1.5) == [0, 1, 3, 4, 6, 7, 8, 8, 8]
    assert sped(0.5) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert sped(0.25) == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_speed_goes_by_the_times() -> None:
    # Seconds 10, 11, 12, 20 twice as fast: 10, 12, 14, 30, where the frames 0, 2, 2 and 3 are on the screen.
    damaged = apply(clip(range(4), [10, 11, 12, 20]), Corruption("speed", {"factor": 2.0}))
    assert looks_of(damaged) == [0, 2, 2, 3]


def test_a_clip_that_cannot_be_seen_to_hurry_slows_down() -> None:
    damaged = apply(clip([0, 1, 1, 1]), Corruption("speed", {"factor": 2.0}))
    assert used(damaged).params["factor"] == 0.5
    assert looks_of(damaged) == [0, 0, 1, 1]


def test_speeds_are_as_often_slower_as_faster() -> None:
    rng = random.Random(0)
    factors = [draw("speed", rng).params["factor"] for _ in range(2000)]
    assert sum(factor < 1 for factor in factors) == pytest.approx(1000, abs=135)
    assert all(1.5 <= max(factor, 1 / factor) <= 4.0000001 for factor in factors)
    assert all(draw("speed", rng, slower=0).params["factor"] > 1 for _ in range(50))


# --- TEMPLE's blocks ---


def test_blocks_of_frames() -> None:
    source = clip(range(10))
    assert looks_of(apply(source, draw("block_reverse", random.Random(0), ratio=4))) == [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]
    assert looks_of(apply(source, draw("block_shuffle", random.Random(0), ratio=2))) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    for ratio, kept in ((2, 5), (4, 2), (8, 1), (16, 1)):
        assert len(apply(source, draw("block_drop", random.Random(0), ratio=ratio)).images) == kept


@pytest.mark.parametrize("name", ["block_drop", "block_reverse", "block_shuffle"])
def test_a_ratio_is_drawn_and_never_changed(name: str) -> None:
    drawn = Counter(draw(name, random.Random(seed)).params["ratio"] for seed in range(200))
    assert set(drawn) == {16, 8, 4, 2}
    assert draw(name, random.Random(0), ratio=[8]).params["ratio"] == 8
    for looks in (list(range(16)), [0] * 15 + [1], [0, 1] * 8):
        for ratio in (16, 8, 4, 2):
            with contextlib.suppress(MediaError):
                assert used(apply(clip(looks), draw(name, random.Random(0), ratio=ratio))).params["ratio"] == ratio


def test_blocks_that_look_alike_are_refused() -> None:
    with pytest.raises(MediaError, match="block_shuffle"):
        apply(clip([0, 1] * 4), draw("block_shuffle", random.Random(0), ratio=4))


# --- pictures' corruptions ---


@pytest.mark.parametrize("name", PICTURES)
def test_every_frame_is_damaged_as_a_picture_is(name: str) -> None:
    source = clip([5, 6, 7, 5], size=(40, 30))
    drawn = draw(name, random.Random(4))
    damaged = apply(source, drawn)
    assert damaged.times == source.times
    recorded = used(damaged)
    assert recorded.name == name
    for number, image in enumerate(source.images):
        params = dict(recorded.params)
        if "noise" in name:
            params["seed"] = frame_seed(params["seed"], number)
        alone = apply(Picture(image, MediaRef("a.png")), Corruption(name, params))
        assert damaged.images[number].tobytes() == alone.image.tobytes()
        assert damaged.images[number].size == alone.image.size
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row(), allow_nan=False)))
    again = apply(source, ref.corruptions[0])
    assert pixels(again) == pixels(damaged)
    assert again.ref.to_row() == damaged.ref.to_row()


@pytest.mark.parametrize("name", PICTURES)
def test_one_frame_is_damaged_like_a_picture(name: str) -> None:
    source = clip([5], size=(40, 30))
    drawn = draw(name, random.Random(4))
    as_picture = apply(Picture(source.images[0], MediaRef("a.png")), drawn)
    as_clip = apply(source, drawn)
    assert as_clip.images[0].tobytes() == as_picture.image.tobytes()
    assert used(as_clip) == used(as_picture)


@pytest.mark.parametrize("name", ["gaussian_noise", "diffusion_noise"])
def test_noise_is_fresh_in_every_frame(name: str) -> None:
    damaged = apply(clip([5, 5, 5, 5]), draw(name, random.Random(0)))
    assert len({image.tobytes() for image in damaged.images}) == 4


@pytest.mark.parametrize("name", [name for name in PICTURES if "noise" not in name])
def test_equal_frames_stay_equal_without_noise(name: str) -> None:
    damaged = apply(clip([5, 5, 5, 5], size=(40, 30)), draw(name, random.Random(0)))
    assert len({image.tobytes() for image in damaged.images}) == 1


def test_seeds_of_frames_are_pinned() -> None:
    # `printf 7:1 | sha256sum` begins with these eight digits.
    assert frame_seed(7, 0) == 7
    assert frame_seed(7, 1) == 0xD7A0CEE7
    assert len({frame_seed(7, number) for number in range(1000)}) == 1000


@given(seed=st.integers(0, 2**32), size=st.tuples(st.integers(8, 60), st.integers(8, 60)))
@settings(max_examples=50, deadline=None)
def test_the_box_stands_in_one_place(seed: int, size: tuple[int, int]) -> None:
    width, height = size
    black = tuple(Image.new("RGB", size, (shade, shade, 0)) for shade in (0, 40, 90))
    source = Clip(black, (0.0, 0.5, 1.0), MediaRef("a.mp4", "video"))
    drawn = draw("box_mask", random.Random(seed))
    damaged = apply(source, drawn)
    boxes = [ImageOps.grayscale(image).point(lambda level: 255 * (level == 245)).getbbox() for image in damaged.images]
    assert len(set(boxes)) == 1
    assert list(boxes[0] or ()) == used(damaged).params["box"]
    left, top, right, bottom = used(damaged).params["box"]
    exact = min(width, height, (drawn.params["area"] * width * height) ** 0.5)
    assert right - left == bottom - top
    # To within one pixel of the side.
    assert abs((right - left) - exact) <= 0.5
    for before, after in zip(source.images, damaged.images, strict=True):
        changed = (np.asarray(before) != np.asarray(after)).any(axis=2)
        assert changed.sum() == (right - left) * (bottom - top)


def test_one_frame_that_changes_is_enough() -> None:
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))
    source = Clip((black, white), (0.0, 1.0), MediaRef("a.mp4", "video"))
    damaged = apply(source, Corruption("blank", {"colour": [0, 0, 0]}))
    assert len({image.tobytes() for image in damaged.images}) == 1
    with pytest.raises(MediaError, match="clip of 2 frames of 8x8 pixels; has it one colour only"):
        apply(damaged, Corruption("blank", {"colour": [0, 0, 0]}))


def test_corruptions_add_up() -> None:
    source, rng = clip(range(8), size=(40, 30)), random.Random(0)
    damaged = apply(apply(apply(source, draw("box_mask", rng)), draw("local_shuffle", rng)), draw("block_drop", rng))
    assert [entry.name for entry in damaged.ref.corruptions] == ["box_mask", "local_shuffle", "block_drop"]
    again = source
    for entry in MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row()))).corruptions:
        again = apply(again, entry)
    assert pixels(again) == pixels(damaged)
    assert source.ref.corruptions == ()


# --- another clip ---


def test_a_swapped_part_shows_the_same_share_of_the_other_clip() -> None:
    source, other = clip(range(8)), clip(range(20, 24), path="b.mp4")
    damaged = swap(source, other, random.Random(3), share=(0.5, 0.5))
    params = used(damaged).params
    start = params["start"]
    assert params["stop"] - start == 4
    wanted = [20, 20, 21, 21, 22, 22, 23, 23]
    assert looks_of(damaged) == [*range(start), *wanted[start : start + 4], *range(start + 4, 8)]
    assert damaged.times == source.times
    assert params["other"] == other.ref.to_row()
    starts = {used(swap(source, other, random.Random(seed), share=(0.5, 0.5))).params["start"] for seed in range(60)}
    assert starts == {0, 1, 2, 3, 4}


def test_a_larger_part_is_swapped_where_a_small_one_looks_alike() -> None:
    drawn = {"share": 0.125, "at": 0.0, "other": {"type": "video", "path": "b.mp4"}, "other_frames": list(range(8))}
    other = clip([0, 1, 2, 9, 9, 9, 9, 9], path="b.mp4")
    damaged = apply(clip(range(8)), Corruption("clip_swap", drawn), lambda _: other)
    assert looks_of(damaged) == [0, 1, 2, 9, 4, 5, 6, 7]
    assert (used(damaged).params["share"], used(damaged).params["stop"]) == (0.5, 4)


def test_a_whole_clip_is_swapped() -> None:
    damaged = swap(clip(range(4)), clip(range(20, 28), path="b.mp4"), random.Random(0), share=(1, 1))
    assert looks_of(damaged) == [20, 22, 24, 26]


def test_frames_of_another_size_cover_the_clip() -> None:
    other = clip([30], size=(48, 20), path="b.mp4")
    damaged = swap(clip(range(2)), other, random.Random(0), share=(1, 1))
    # 48x20 covers 12x10 at half its size, 24x10; the middle half of its width stays.
    wanted = other.images[0].resize((12, 10), Image.Resampling.BILINEAR, box=(12, 0, 36, 20))
    assert [image.tobytes() for image in damaged.images] == [wanted.tobytes()] * 2


@given(looks=lookses(), others=lookses(), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_swaps_replay_from_their_record(looks: list[int], others: list[int], seed: int) -> None:
    source, other = clip(looks), clip(others, path="b.mp4")
    try:
        damaged = swap(source, other, random.Random(seed))
    except MediaError:
        # Nothing is left to try once the whole clip is swapped.
        assert looks == [others[place * len(others) // len(looks)] for place in range(len(looks))]
        return
    assert looks_of(damaged) != looks
    asked = []

    def opener(ref: MediaRef) -> Media:
        asked.append(ref)
        return other

    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row(), allow_nan=False)))
    again = apply(source, ref.corruptions[0], opener)
    assert pixels(again) == pixels(damaged)
    assert again.ref.to_row() == damaged.ref.to_row()
    assert asked == [other.ref]


def test_a_swap_needs_its_other_clip() -> None:
    source, other = clip(range(4)), clip(range(20, 24), path="b.mp4")
    with pytest.raises(RecipeError, match="corruption clip_swap: needs another clip"):
        apply(source, draw("clip_swap", random.Random(0)))
    recorded = used(swap(source, other, random.Random(0)))
    with pytest.raises(ValueError, match="needs an `opener`"):
        apply(source, recorded)
    with pytest.raises(MediaError, match=r"a\.mp4: its recorded swap with b\.mp4 does not fit"):
        apply(source, recorded, lambda _: clip([20], path="b.mp4"))
    with pytest.raises(MediaError, match=r"does not fit"):
        apply(source, recorded, lambda _: Picture(frame(0), MediaRef("b.png")))
    with pytest.raises(MediaError, match=r"cannot be corrupted by clip_swap"):
        swap(source, source, random.Random(0))


@pytest.mark.parametrize(
    ("name", "ranges", "message"),
    [
        ("local_shuffle", {"window": 1}, "whole number from 2"),
        ("segment_shuffle", {"segments": (1, 3)}, "within 2 to 1000"),
        ("segment_shuffle", {"segments": (2.5, 3)}, "whole number from 2"),
        ("drop_frames", {"share": (0, 0.5)}, "within 0.001 to 0.999"),
        ("freeze", {"to_end": 1.5}, r"freeze\.to_end"),
        ("freeze", {"share": 0.5}, "need \\[least, greatest\\]"),
        ("speed", {"factor": (0.5, 2)}, "within 1.01 to 100"),
        ("speed", {"slower": -0.1}, r"speed\.slower"),
        ("block_drop", {"ratio": 1}, r"block_drop\.ratio: got 1, need a whole number from 2"),
        ("block_shuffle", {"ratio": (4, 2.5)}, r"block_shuffle\.ratio: got 2\.5"),
        ("block_reverse", {"ratio": ()}, "need at least one"),
        ("block_reverse", {"m": 4}, "unknown range 'm'"),
        ("clip_swap", {"share": (0.5, 1.5)}, "within 0.001 to 1"),
        ("reverse", {"frames": [1, 0]}, "corruption reverse: unknown range 'frames'"),
    ],
)
def test_wrong_ranges(name: str, ranges: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(name, random.Random(0), **ranges)
