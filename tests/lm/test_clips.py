"""Times of clips in the terms of video processors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.lm.clips import CLOCK, at_least, metadata, pixels
from mmalign.types import Clip, Frames, MediaRef
from tests.models import clip, picture

RATES = (1.0, 2.0, 5.0, 10.0, 12.5, 15.0, 23.976023976, 24.0, 25.0, 29.97002997, 30.0, 50.0, 60.0)


def at(times: tuple[float, ...], fps: float = 0.0, total: int = 0) -> Clip:
    frames = Frames(tuple(range(len(times))), times, fps, total) if fps else None
    return Clip((picture().image,) * len(times), times, MediaRef("a.mp4", "video", frames=frames))


def told(shown: Clip) -> list[float]:
    found = metadata(shown)
    return [number / found["fps"] for number in found["frames_indices"]]


@given(
    fps=st.sampled_from(RATES), numbers=st.lists(st.integers(0, 5000), min_size=1, max_size=12, unique=True).map(sorted)
)
def test_frames_of_a_constant_rate_keep_their_numbers(fps: float, numbers: list[int]) -> None:
    times = tuple(number / fps for number in numbers)
    found = metadata(at(times, fps, 5001))
    assert found["frames_indices"] == numbers
    assert found["fps"] == pytest.approx(fps, rel=1e-9)
    assert found["duration"] == pytest.approx(5001 / fps)


@given(times=st.lists(st.floats(0, 7200), min_size=1, max_size=12).map(sorted), fps=st.sampled_from((0.0, *RATES)))
def test_any_times_are_told_to_a_millisecond(times: list[float], fps: float) -> None:
    assert told(at(tuple(times), fps, 10**6)) == pytest.approx(times, abs=1.1e-3)


@given(step=st.sampled_from((1 / 3, 0.5, 1.0, 1.5, 2.0, 0.1, 4 / 3)), count=st.integers(2, 40))
def test_even_steps_without_a_file_are_exact(step: float, count: int) -> None:
    times = tuple(step * number for number in range(count))
    found = metadata(at(times))
    assert told(at(times)) == pytest.approx(times, abs=1e-9)
    assert [int(value) for value in told(at(times))] == [int(value + 1e-9) for value in times]
    shown_per_second = count / found["total_num_frames"] * found["fps"]
    assert shown_per_second == pytest.approx(1 / step)


def test_the_rate_of_the_frames_is_theirs_and_not_the_files() -> None:
    # Two seconds of a minute at 30 frames per second, four frames: 1.5 frames per second.
    shown = at((10.0, 10.0 + 2 / 3, 10.0 + 4 / 3, 12.0), 30.0, 1800)
    found = metadata(shown)
    assert 4 / found["total_num_frames"] * found["fps"] == pytest.approx(1.5)
    assert found["duration"] == 60.0


def test_times_on_no_grid_are_told_in_microseconds() -> None:
    found = metadata(at((0.0, 0.0137, 1.2345678), 25.0, 100))
    assert found["fps"] == CLOCK
    assert found["frames_indices"] == [0, 13_700, 1_234_568]


def test_times_that_stand_still_divide_by_nothing() -> None:
    assert metadata(at((3.0, 3.0, 3.0)))["total_num_frames"] == 1
    assert metadata(at((0.0,)))["duration"] == 0.0


def test_a_short_clip_shows_its_last_frame_again() -> None:
    longer = at_least(clip(frames=1, times=(2.5,)), 2)
    assert longer.times == (2.5, 2.5)
    assert longer.images[0] is longer.images[1]
    assert at_least(clip(frames=3), 2).times == clip(frames=3).times


def test_pixels_are_the_frames_in_order() -> None:
    shown = clip(3, frames=3, size=(16, 8))
    array = pixels(shown)
    assert (array.shape, array.dtype) == ((3, 8, 16, 3), np.uint8)
    assert all((array[i] == np.asarray(image)).all() for i, image in enumerate(shown.images))
