"""Which frames are chosen: as many as asked, spread as said, from the times at which they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import MediaError, RecipeError
from mmalign.media.frames import FrameChoice, chosen


def even(total: int, rate: float = 10.0) -> tuple[list[float], float]:
    return [number / rate for number in range(total)], total / rate


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        (FrameChoice(num_frames=4), [2, 7, 12, 17]),
        (FrameChoice(num_frames=1), [10]),
        (FrameChoice(num_frames=4, at="ends"), [0, 6, 13, 19]),
        (FrameChoice(num_frames=2, at="ends"), [0, 19]),
        (FrameChoice(num_frames=1, at="ends"), [10]),
        (FrameChoice(num_frames=3, at="first"), [0, 1, 2]),
        (FrameChoice(num_frames=3, at="last"), [17, 18, 19]),
        (FrameChoice(num_frames=16, fps=2.0), [2, 7, 12, 17]),
        (FrameChoice(num_frames=16, fps=0.1), [19]),
        (FrameChoice(num_frames=3, fps=5.0), [3, 10, 16]),
        (FrameChoice(num_frames=40, fps=100.0), list(range(20))),
        (FrameChoice(num_frames=2, segments=((0.0, 1.0), (1.5, 9.0))), [2, 7, 16, 18]),
        (FrameChoice(num_frames=9, segments=((0.45, 0.75),)), [4, 5, 6, 7]),
    ],
)
def test_choices_among_twenty_frames_of_two_seconds(choice: FrameChoice, numbers: list[int]) -> None:
    assert chosen(*even(20), choice) == numbers


def test_rates_count_time_and_not_frames() -> None:
    # Nine frames in the first 0.9 seconds, then one that stays to the end.
    times = [*(number / 10 for number in range(9)), 0.9]
    assert chosen(times, 4.0, FrameChoice(fps=1.0)) == [5, 9]
    assert chosen(times, 4.0, FrameChoice(num_frames=5)) == [1, 3, 5, 7, 9]


def test_a_segment_behind_the_end_is_refused() -> None:
    with pytest.raises(MediaError, match=r"no segment \(3, 4\): it ends after 2\.000 seconds"):
        chosen(*even(20), FrameChoice(segments=((3.0, 4.0),)))


@given(
    steps=st.lists(st.floats(0.01, 2.0), min_size=0, max_size=40),
    num=st.integers(1, 50),
    at=st.sampled_from(["uniform", "ends", "first", "last"]),
)
def test_as_many_as_asked_each_once_and_in_order(steps: list[float], num: int, at: str) -> None:
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    numbers = chosen(times, times[-1] + 0.1, FrameChoice(num_frames=num, at=at))  # type: ignore[arg-type]
    assert len(numbers) == min(num, len(times))
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(len(times)))
    if at == "ends" and num > 1:
        assert (numbers[0], numbers[-1]) == (0, len(times) - 1)


@given(total=st.integers(1, 60), num=st.integers(1, 40), fps=st.floats(0.01, 200.0))
def test_a_rate_is_kept_until_the_cap(total: int, num: int, fps: float) -> None:
    times, duration = even(total)
    numbers = chosen(times, duration, FrameChoice(num_frames=num, fps=fps))
    assert 1 <= len(numbers) <= min(num, total)
    assert numbers == sorted(set(numbers))
    if 1 <= duration * fps <= num and fps <= 10:
        assert abs(len(numbers) - duration * fps) <= 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_frames": 0}, "num_frames: got 0"),
        ({"fps": 0.0}, "fps: got 0"),
        ({"fps": float("nan")}, "fps: got nan"),
        ({"fps": 1.0, "at": "first"}, "leave one out"),
        ({"segments": ((2.0, 1.0),)}, "segments: got"),
    ],
)
def test_wrong_choices(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FrameChoice(**keys)  # type: ignore[arg-type]
