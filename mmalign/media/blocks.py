"""Shared memory through which a child hands over frames: a block of it for every clip, as the child sees it.

A block holds frames one after another, four bytes a pixel: RGB, and one that says nothing, as Pillow keeps pictures.
The parent (`mmalign.media.ledger`) knows which blocks are free and tells it with every request; the child takes the
smallest that is large enough, or makes a new one behind all others. Both keep blocks mapped from clip to clip: to touch
memory for the first time takes as long as decoding.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Block(NamedTuple):
    """`size` bytes from `place` on."""

    place: int
    size: int


def shared_memory() -> int:
    """A descriptor of memory without a name; on systems that know no such thing, of a file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mmalign-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def rounded(size: int) -> int:
    """At least `size` bytes and at most a quarter more (or a page), so that clips of about one size share blocks."""
    step = max(mmap.ALLOCATIONGRANULARITY, 1 << max(0, size.bit_length() - 3))
    return max(1, -(-size // step)) * step


class Blocks:
    """The blocks of the memory behind `descriptor`, for one request after another.

    Args:
        descriptor: The shared memory.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapped: dict[Block, mmap.mmap] = {}
        self._free: list[Block] = []
        self._end = 0

    def know(self, rows: Iterable[tuple[int, int, bool]]) -> None:
        """Learn what blocks there are: place, size, and whether it is free."""
        known = {Block(place, size): is_free for place, size, is_free in rows}
        self._mapped = {block: memory for block, memory in self._mapped.items() if block in known}
        self._free = [block for block, is_free in known.items() if is_free]
        self._end = max((block.place + block.size for block in known), default=0)

    def take(self, size: int) -> tuple[Block, NDArray[np.uint8]]:
        """A block for `size` bytes, and these to be written; what the same request took before is free again."""
        fits = [block for block in self._free if block.size >= size]
        block = min(fits, key=lambda block: block.size) if fits else Block(self._end, rounded(size))
        if block not in self._mapped:
            if os.fstat(self._descriptor).st_size < block.place + block.size:
                os.ftruncate(self._descriptor, block.place + block.size)
            self._mapped[block] = mmap.mmap(self._descriptor, block.size, offset=block.place)
        return block, np.frombuffer(self._mapped[block], np.uint8, size)
