"""All orders that a list is damaged by for one curriculum, strongest first (TEMPLE, arXiv 2503.16929)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mmalign.corrupt.blocks import distinct_ratios, drop, reverse, shuffle
from mmalign.corrupt.registry import apply
from mmalign.types import Clip, Corruption

Kind = Literal["drop", "reverse", "shuffle", "none"]


class Order(NamedTuple):
    """Which places of a list are told, in this order, and how that came about."""

    kind: Kind
    ratio: int
    places: Sequence[int]

    def of(self, clip: Clip) -> Clip:
        """The clip with its frames in this order. Raises MediaError where nothing of it can be seen."""
        if self.kind == "none":
            return clip
        return apply(clip, Corruption(f"block_{self.kind}", {"ratio": self.ratio, "frames": list(self.places)}))


def orders(num: int, kinds: Sequence[Kind], ratios: Sequence[int], rng: random.Random) -> list[Order]:
    """Every kind at every ratio for `num` places, the largest ratio first; what comes out the same is given once.

    Of ratios with equal blocks the largest stays; a shuffle of two blocks is their reversal. "none" is the clean order.
    """
    found: dict[tuple[int, ...], Order] = {}
    for ratio in distinct_ratios(num, sorted(ratios, reverse=True)):
        for kind in kinds:
            if kind == "drop":
                places = drop(num, ratio, rng)
            elif kind == "reverse":
                places = reverse(num, ratio)
            elif kind == "shuffle":
                places = shuffle(num, ratio, rng)
            else:
                places = list(range(num))
            found.setdefault(tuple(places), Order(kind, ratio, places))
    return list(found.values())
