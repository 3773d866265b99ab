from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign.media.parts import parts
from mmalign.types import Clip, Frames, MediaRef


def clip(num: int, frames: Frames | None = None) -> Clip:
    images = tuple(Image.new("RGB", (2, 2), (at, 0, 0)) for at in range(num))
    return Clip(images, tuple(at / 4 for at in range(num)), MediaRef("a.mp4", "video", frames=frames))


def places(part: Clip) -> list[int]:
    return [round(4 * time) for time in part.times]


@pytest.mark.parametrize(
    ("num_frames", "num", "shown", "expected"),
    [
        (12, 2, 2, [[2, 4], [8, 10]]),  # a third and two thirds of six frames
        (12, 3, 1, [[2], [6], [10]]),
        (4, 2, 2, [[0, 1], [2, 3]]),
        (5, 2, 2, [[0, 1], [3, 4]]),
        (3, 8, 2, [[0], [1], [2]]),
        (1, 4, 2, [[0]]),
    ],
)
def test_parts_of_equal_length(num_frames: int, num: int, shown: int, expected: list[list[int]]) -> None:
    assert [places(part) for part in parts(clip(num_frames), num, shown)] == expected


def test_a_part_names_the_frames_of_the_file_that_it_shows() -> None:
    frames = Frames((0, 10, 20, 30), (0.0, 0.4, 0.8, 1.2), 25.0, 40, "pyav")
    first, second = parts(clip(4, frames), 2, 1)
    assert first.ref.frames == Frames((10,), (0.4,), 25.0, 40, "pyav")
    assert second.ref.frames == Frames((30,), (1.2,), 25.0, 40, "pyav")
    assert second.images[0].getpixel((0, 0)) == (3, 0, 0)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 5))
def test_parts_are_in_order_without_overlap_and_never_empty(num_frames: int, num: int, shown: int) -> None:
    found = [places(part) for part in parts(clip(num_frames), num, shown)]
    flat = [place for part in found for place in part]
    assert len(found) == min(num, num_frames)
    assert flat == sorted(set(flat))
    assert all(1 <= len(part) <= shown for part in found)
    for at, part in enumerate(found):
        start, stop = at * num_frames // len(found), (at + 1) * num_frames // len(found)
        assert all(start <= place < stop for place in part)
        assert len(part) == min(shown, stop - start)
