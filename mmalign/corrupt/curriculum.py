"""All orders that a list is damaged by for one curriculum, strongest first (TEMPLE, arXiv 2503.16929)."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple, TypeVar

from mmalign.corrupt.blocks import block_size, blocks, distinct_ratios, drop, reverse, rotated, shuffle
from mmalign.corrupt.framemap import REDRAWS
from mmalign.corrupt.registry import apply
from mmalign.errors import MediaError
from mmalign.types import Chat, Clip, Corruption

T = TypeVar("T")
Kind = Literal["drop", "reverse", "shuffle", "none"]


class Order(NamedTuple):
    """Which places of a list are told, in this order, how that came about, and whether the damage can be seen."""

    kind: Kind
    ratio: int
    places: Sequence[int]
    seen: bool = True

    def among(self, items: Sequence[T]) -> list[T]:
        """The items of a list in this order. Raises MediaError where nothing of it can be seen."""
        if not self.seen:
            raise MediaError(f"{self.kind} at the ratio {self.ratio} changes nothing in this list")
        return [items[place] for place in self.places]

    def of(self, clip: Clip) -> Clip:
        """The clip with its frames in this order. Raises MediaError where nothing of it can be seen."""
        if self.kind == "none":
            return clip
        return apply(clip, Corruption(f"block_{self.kind}", {"ratio": self.ratio, "frames": list(self.places)}))


#: Makes the request to tell of things in an order. Raises MediaError where nobody sees the damage.
Telling = Callable[[Order], Chat]


def orders(looks: Sequence[Hashable], kinds: Sequence[Kind], ratios: Sequence[int], rng: random.Random) -> list[Order]:
    """Every kind at every ratio, the largest ratio first; what comes out the same is given once.

    `looks` says of every place what is told there: equal things, such as two captions in the same words, change places
    unseen. A shuffle is one that can be seen wherever there is any. An order that nobody sees is marked as not `seen`.
    Of ratios with equal blocks the largest stays; a shuffle of two blocks is their reversal. "none" is the clean order.
    """
    num, clean = len(looks), tuple(looks)
    found: list[Order] = []
    told: set[tuple[Hashable, ...]] = set()
    for ratio in distinct_ratios(num, sorted(ratios, reverse=True)):
        for kind in kinds:
            if kind == "drop":
                places = drop(num, ratio, rng)
            elif kind == "reverse":
                places = reverse(num, ratio)
            elif kind == "shuffle":
                places = visible_shuffle(looks, ratio, rng)
            else:
                places = list(range(num))
            shown = tuple(looks[place] for place in places)
            if kind != "none" and shown == clean:
                found.append(Order(kind, ratio, places, seen=False))
            elif shown not in told:
                told.add(shown)
                found.append(Order(kind, ratio, places))
    return found


def visible_shuffle(looks: Sequence[Hashable], ratio: int, rng: random.Random) -> list[int]:
    """A shuffle of the blocks that can be seen if any can; one that looks reversed only where few others exist."""
    num = len(looks)
    parts = blocks(num, block_size(num, ratio))
    useless = [list(looks)]
    if len(parts) > 2:
        useless.append([looks[place] for place in reverse(num, ratio)])
    for _ in range(REDRAWS):
        places = shuffle(num, ratio, rng)
        if [looks[place] for place in places] not in useless:
            return places
    return rotated(parts)
