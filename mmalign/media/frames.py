"""Which frames of a video are taken: by number, from the times at which the file's frames are really shown."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.errors import MediaError, RecipeError

At = Literal["uniform", "ends", "first", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameChoice:
    """How many frames of a video are taken, and where.

    Args:
        num_frames: Most frames that are taken; a video with fewer gives all of them.
        fps: With "uniform": take one frame from the middle of each 1/fps seconds; where these are more than
            `num_frames`, they are spread as without `fps`.
        at: "uniform" cuts the frames into `num_frames` parts of equal number and takes the middle one of each; "ends"
            spreads them from the very first to the very last frame; "first" and "last" are the frames at one end.
        segments: Pieces of the video, (start, end) in seconds; the choice is then made inside each of them anew.
    """

    num_frames: int = 16
    fps: float | None = None
    at: At = "uniform"
    segments: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise RecipeError(f"num_frames: got {self.num_frames}, must be at least 1")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise RecipeError(f"fps: got {self.fps}, must be a positive number of frames per second")
        if self.fps is not None and self.at != "uniform":
            raise RecipeError(f"fps: chooses frames over the whole video, which at: {self.at} does not; leave one out")
        for start, end in self.segments:
            if not 0 <= start < end:
                raise RecipeError(f"segments: got ({start}, {end}), need 0 <= start < end in seconds")


def chosen(times: Sequence[float], duration: float, choice: FrameChoice) -> list[int]:
    """Numbers of the frames that `choice` takes, ascending and each once.

    Args:
        times: Seconds at which the frames are shown, strictly ascending, the first at 0.
        duration: Seconds until the last frame is no longer shown.
        choice: The choice.

    Raises MediaError without the file's name when a segment lies behind the end of the video.
    """
    if not choice.segments:
        return _chosen(times, 0, len(times), 0.0, duration, choice)
    numbers: set[int] = set()
    for start, end in choice.segments:
        if start >= duration:
            raise MediaError(f"has no segment ({start:g}, {end:g}): it ends after {duration:.3f} seconds")
        # A frame is on the screen until the next one comes, so the segment's first may have begun before it.
        first, past = bisect_right(times, start) - 1, bisect_left(times, end)
        numbers.update(_chosen(times, first, past, start, min(end, duration), choice))
    return sorted(numbers)


def _chosen(times: Sequence[float], first: int, past: int, start: float, end: float, choice: FrameChoice) -> list[int]:
    """The choice among the frames `first` to `past - 1`, which are on the screen from `start` to `end` seconds."""
    total, num = past - first, choice.num_frames
    if choice.fps is not None:
        steps = max(1, math.floor((end - start) * choice.fps + 1e-6))
        if steps <= num:
            middles = (start + (step + 0.5) / choice.fps for step in range(steps))
            # A video shorter than half a step ends before the middle of its only step.
            return sorted({max(first, min(bisect_right(times, middle) - 1, past - 1)) for middle in middles})
    if num >= total:
        return list(range(first, past))
    if choice.at == "first":
        return list(range(first, first + num))
    if choice.at == "last":
        return list(range(past - num, past))
    if choice.at == "ends" and num > 1:
        return [first + (step * (total - 1) + (num - 1) // 2) // (num - 1) for step in range(num)]
    return [first + (2 * step + 1) * total // (2 * num) for step in range(num)]
