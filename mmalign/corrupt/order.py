"""Damage to the order of time: frames shuffled nearby or everywhere, segments shuffled, everything backwards.

The frames change places, the times stay: a model is shown as many frames at the same seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmalign.corrupt.blocks import any_order, blocks, joined, new_order, rotated, segments
from mmalign.corrupt.framemap import REDRAWS, FrameMap
from mmalign.corrupt.registry import Params, check_span, check_whole, corruption
from mmalign.types import Row


@corruption("local_shuffle", media="video")
@dataclass(frozen=True, kw_only=True)
class LocalShuffle(FrameMap):
    """Frames shuffled inside consecutive windows of `window` frames (RRPO; the length of 4 is ours).

    A single window may keep its order, all of them together never do.
    """

    window: int = 4

    def __post_init__(self) -> None:
        check_whole("local_shuffle.window", self.window, 2, 10_000)

    def draw(self, rng: random.Random) -> Row:
        return {"window": self.window, "seed": rng.getrandbits(32)}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, num, window = random.Random(params["seed"]), len(times), params["window"]
        for _ in range(REDRAWS):
            moved = [[part[at] for at in any_order(len(part), rng)] for part in blocks(num, window)]
            yield {**params, "frames": joined(moved)}
        # Wider windows only where nothing moves inside of these.
        while True:
            moved = [rotated([[place] for place in part]) for part in blocks(num, window)]
            yield {**params, "window": window, "frames": joined(moved)}
            if window >= num:
                return
            window *= 2


@corruption("global_shuffle", media="video")
@dataclass(frozen=True, kw_only=True)
class GlobalShuffle(FrameMap):
    """All frames in one random order (RRPO); not backwards either, if there are three or more."""

    def draw(self, rng: random.Random) -> Row:
        return {"seed": rng.getrandbits(32)}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, num = random.Random(params["seed"]), len(times)
        for _ in range(REDRAWS):
            yield {**params, "frames": new_order(num, rng)}
        yield {**params, "frames": rotated(blocks(num, 1))}


@corruption("segment_shuffle", media="video")
@dataclass(frozen=True, kw_only=True)
class SegmentShuffle(FrameMap):
    """The clip cut into `segments` parts of equal length that change places; inside them time runs on. Ours.

    A clip with fewer frames has as many segments as frames. Lengths differ by one frame where they do not divide.
    """

    segments: tuple[int, int] = (3, 6)

    def __post_init__(self) -> None:
        check_span("segment_shuffle.segments", self.segments, 2, 1000)
        for end in self.segments:
            check_whole("segment_shuffle.segments", end, 2, 1000)

    def draw(self, rng: random.Random) -> Row:
        return {"segments": rng.randint(*self.segments), "seed": rng.getrandbits(32)}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, count = random.Random(params["seed"]), len(times)
        # Shorter segments move what repeats itself within longer ones.
        num = min(params["segments"], count)
        while True:
            parts = segments(count, num)
            for _ in range(REDRAWS):
                frames = joined(parts[at] for at in new_order(num, rng))
                yield {**params, "segments": num, "frames": frames}
            yield {**params, "segments": num, "frames": rotated(parts)}
            if num == count:
                return
            num = min(2 * num, count)


@corruption("reverse", media="video")
@dataclass(frozen=True, kw_only=True)
class Reverse(FrameMap):
    """The clip backwards, frame by frame; TEMPLE's reversal, with time running on in blocks, is block_reverse."""

    def draw(self, rng: random.Random) -> Row:
        return {}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        yield {**params, "frames": list(range(len(times)))[::-1]}
