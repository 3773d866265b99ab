"""Orders of any sequence as lists of its places: blocks kept, reversed or shuffled, as TEMPLE damages a list of clips.

A result `[8, 9, 6]` says: first what stood at 8, then what stood at 9, then what stood at 6. Frames, the captions of
a clip's parts, whatever has an order can be damaged alike. Random orders use `random()` alone, the one method of
Python's generator whose stream is promised to stay as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence


def block_size(n: int, m: int) -> int:
    """Items in one block of `n` items at the ratio `m`: max(1, n // m). The larger `m`, the stronger the damage.

    Raises ValueError for fewer than two items, or a ratio under 2: one single block cannot be damaged.
    """
    if n < 2:
        raise ValueError(f"{n} items have one order only and cannot lose any; two are needed")
    if m < 2:
        raise ValueError(f"a ratio of {m} makes one single block, which has one order only; it must be at least 2")
    return max(1, n // m)


def distinct_ratios(n: int, ratios: Iterable[int]) -> list[int]:
    """The ratios whose blocks differ at `n` items: the first of those with equal blocks stays. None below two items."""
    first: dict[int, int] = {}
    if n >= 2:
        for m in ratios:
            first.setdefault(block_size(n, m), m)
    return list(first.values())


def drop(n: int, m: int, rng: random.Random) -> list[int]:
    """The places of max(1, n // m) random items, in their order; the others are dropped."""
    return sample(n, block_size(n, m), rng)


def reverse(n: int, m: int) -> list[int]:
    """The blocks from last to first, each unchanged inside: `n` 10, `m` 4 gives 8, 9, 6, 7, 4, 5, 2, 3, 0, 1."""
    return joined(reversed(blocks(n, block_size(n, m))))


def shuffle(n: int, m: int, rng: random.Random) -> list[int]:
    """The blocks in a random order, each unchanged inside.

    The order is never the one given, nor its reversal where there are three blocks or more; two have no other.
    """
    parts = blocks(n, block_size(n, m))
    return joined(parts[at] for at in new_order(len(parts), rng))


def blocks(n: int, size: int) -> list[list[int]]:
    """`n` places in consecutive blocks of `size`; the last one may be shorter."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def segments(n: int, num: int) -> list[list[int]]:
    """`n` places in exactly `num` consecutive segments whose lengths differ by one at most; `num` <= `n`."""
    return [list(range(at * n // num, (at + 1) * n // num)) for at in range(num)]


def joined(parts: Iterable[Sequence[int]]) -> list[int]:
    return [place for part in parts for place in part]


def any_order(n: int, rng: random.Random) -> list[int]:
    """Any order of `n` places, all equally likely, the one given among them."""
    keys = [rng.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def new_order(n: int, rng: random.Random) -> list[int]:
    """An order of `n` places that is not the one given, nor its reversal if there are three or more; `n` >= 2."""
    while True:
        order = any_order(n, rng)
        if order != list(range(n)) and (n == 2 or order != list(range(n))[::-1]):
            return order


def sample(n: int, num: int, rng: random.Random) -> list[int]:
    """`num` of `n` places, ascending, all choices equally likely."""
    return sorted(any_order(n, rng)[:num])


def rotated(parts: Sequence[Sequence[int]]) -> list[int]:
    """Every part one place on, the first at the end.

    If nothing else shows a change, this does: single items that look the same one place on are all alike, and so are
    blocks of one size with a shorter rest.
    """
    return joined([*parts[1:], *parts[:1]])
