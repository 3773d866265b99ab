"""TEMPLE's damages on frames: blocks dropped, reversed or shuffled, with a ratio that says how hard they are to see.

The ratio is a stage of the training's curriculum, so a clip on which it shows nothing is refused: no other is tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmalign.corrupt.blocks import block_size, blocks, drop, reverse, rotated, shuffle
from mmalign.corrupt.framemap import REDRAWS, FrameMap
from mmalign.corrupt.registry import Params, check_whole, corruption
from mmalign.errors import RecipeError
from mmalign.types import Row


@dataclass(frozen=True, kw_only=True)
class _Blocks(FrameMap):
    """`ratio` is m, or several of which one is drawn: blocks have max(1, n // m) of n frames. 16 is the strongest."""

    ratio: int | tuple[int, ...] = (16, 8, 4, 2)
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not self._ratios:
            raise RecipeError(f"corruption {self.name}.ratio: got (), need at least one whole number")
        for ratio in self._ratios:
            check_whole(f"{self.name}.ratio", ratio, 2, 10_000)

    @property
    def _ratios(self) -> tuple[int, ...]:
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)

    def draw(self, rng: random.Random) -> Row:
        return {"ratio": rng.choice(self._ratios), "seed": rng.getrandbits(32)}


@corruption("block_drop", media="video")
@dataclass(frozen=True, kw_only=True)
class BlockDrop(_Blocks):
    """As many random frames as one block has are kept, in order and at their times (TEMPLE)."""

    name: ClassVar[str] = "block_drop"

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, num = random.Random(params["seed"]), len(times)
        for _ in range(REDRAWS):
            yield {**params, "frames": drop(num, params["ratio"], rng)}
        # At most half the frames are kept, so if neither end shows that the rest is missing, the clip stands still.
        kept = block_size(num, params["ratio"])
        yield {**params, "frames": list(range(kept))}
        yield {**params, "frames": list(range(num - kept, num))}


@corruption("block_reverse", media="video")
@dataclass(frozen=True, kw_only=True)
class BlockReverse(_Blocks):
    """The blocks from last to first; inside each, time runs on (TEMPLE)."""

    name: ClassVar[str] = "block_reverse"

    def draw(self, rng: random.Random) -> Row:
        return {"ratio": rng.choice(self._ratios)}

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        yield {**params, "frames": reverse(len(times), params["ratio"])}


@corruption("block_shuffle", media="video")
@dataclass(frozen=True, kw_only=True)
class BlockShuffle(_Blocks):
    """The blocks in a random order, not backwards if there are three or more; inside each, time runs on (TEMPLE)."""

    name: ClassVar[str] = "block_shuffle"

    @staticmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        rng, num = random.Random(params["seed"]), len(times)
        for _ in range(REDRAWS):
            yield {**params, "frames": shuffle(num, params["ratio"], rng)}
        yield {**params, "frames": rotated(blocks(num, block_size(num, params["ratio"])))}
