"""Damage to the course of time: frames missing, the picture standing still, everything faster or slower. Ours."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmalign.corrupt.blocks import sample
from mmalign.corrupt.framemap import REDRAWS, FrameMap
from mmalign.corrupt.registry import Params, check_span, corruption
from mmalign.types import Row

#: How much a frame may come early, in mean distances of two frames: files round times, some to whole milliseconds.
EARLY = 0.1


@corruption("drop_frames", media="video")
@dataclass(frozen=True, kw_only=True)
class DropFrames(FrameMap):
    """A share of the frames left out, at least one; those that stay keep their order and their times."""

    share: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        check_span("drop_frames.share", self.share, 0.001, 0.999)

    def draw(self, rng: random.Random) -> Row:
        return {"share": rng.uniform(*self.share), "seed": rng.getrandbits(32)}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, num = random.Random(params["seed"]), len(times)
        kept = max(1, num - max(1, round(params["share"] * num)))
        for _ in range(REDRAWS):
            yield {**params, "frames": sample(num, kept, rng)}
        # A frame that looks like the one before it is missed by nobody: one end of the clip, then less of it.
        while True:
            for frames in (list(range(kept)), list(range(num - kept, num))):
                yield {**params, "share": 1 - kept / num, "frames": frames}
            if kept == 1:
                return
            kept //= 2


@corruption("freeze", media="video")
@dataclass(frozen=True, kw_only=True)
class Freeze(FrameMap):
    """The picture stands still from a random frame on for a `share` of the frames; `to_end` is how often to the end."""

    share: tuple[float, float] = (0.25, 0.75)
    to_end: float = 0.5

    def __post_init__(self) -> None:
        check_span("freeze.share", self.share, 0.001, 1)
        check_span("freeze.to_end", (0, self.to_end), 0, 1)

    def draw(self, rng: random.Random) -> Row:
        share, at = rng.uniform(*self.share), rng.random()
        # `at` reaches from the earliest start, 0, to the latest, 1, which is the one that lasts to the end.
        return {"share": share, "at": 1.0 if rng.random() < self.to_end else at}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        num = len(times)
        still = min(max(1, round(params["share"] * num)), num - 1)
        yield {**params, "frames": _frozen(num, still, params["at"])}
        while still < num - 1:
            still = min(2 * still, num - 1)
            yield {**params, "share": still / num, "frames": _frozen(num, still, params["at"])}


def _frozen(num: int, still: int, at: float) -> list[int]:
    """`still` frames replaced by the one before them."""
    start = round(at * (num - 1 - still))
    return [start if start < place <= start + still else place for place in range(num)]


@corruption("speed", media="video")
@dataclass(frozen=True, kw_only=True)
class Speed(FrameMap):
    """The clip faster or slower by a `factor` at the same times; `slower` is how often it is slower.

    A frame shown t seconds after the first is the one that was on the screen after `factor` * t. A faster clip stands
    still at its last frame, a slower one is cut off.
    """

    factor: tuple[float, float] = (1.5, 4.0)
    slower: float = 0.5

    def __post_init__(self) -> None:
        check_span("speed.factor", self.factor, 1.01, 100)
        check_span("speed.slower", (0, self.slower), 0, 1)

    def draw(self, rng: random.Random) -> Row:
        factor = rng.uniform(*self.factor)
        return {"factor": 1 / factor if rng.random() < self.slower else factor}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        factor = params["factor"]
        yield {**params, "frames": _sped(times, factor)}
        # More of the same first, then the other way: a clip whose first frame alone differs cannot be seen to hurry.
        onward = 2.0 if factor > 1 else 0.5
        for first, step in ((factor * onward, onward), (1 / factor, 1 / onward)):
            for doubling in range(16):
                stronger = first * step**doubling
                yield {**params, "factor": stronger, "frames": _sped(times, stronger)}


def _sped(times: Sequence[float], factor: float) -> list[int]:
    start = times[0]
    early = EARLY * (times[-1] - start) / (len(times) - 1)
    return [bisect_right(times, start + factor * (time - start) + early) - 1 for time in times]
