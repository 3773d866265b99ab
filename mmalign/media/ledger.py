"""Shared memory through which a child hands over frames, as the parent sees it: pictures that are not copied.

A clip's pictures lie in one block (`mmalign.media.blocks`), which stays theirs until the last of them is gone.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from mmalign.media.blocks import Block, shared_memory

#: Bytes of free blocks that are kept for the clips that come.
KEPT: Final = 2**29

#: Blocks in use, each of which costs a descriptor; the pictures of clips beyond are copied.
MOST: Final = 64


@dataclass(slots=True, eq=False)
class _Entry:
    """A block's memory, and who uses it: an array on which all pictures in the block hang."""

    memory: mmap.mmap
    user: weakref.ref[NDArray[np.uint8]] | None = None
    is_free: bool = True


class Ledger:
    """The blocks that one child has made. One thread at a time asks it; pictures may go away in any thread."""

    def __init__(self) -> None:
        self.descriptor = shared_memory()
        self._process = os.getpid()
        self._entries: dict[Block, _Entry] = {}  # the one that was used last is last

    def rows(self) -> list[tuple[int, int, bool]]:
        """What the child is told: place, size, and whether it is free."""
        return [(block.place, block.size, entry.is_free) for block, entry in list(self._entries.items())]

    @property
    def is_used(self) -> bool:
        """Whether there are pictures in any block."""
        return not all(entry.is_free for entry in list(self._entries.values()))

    def images(self, block: Block, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """The frames of these sizes (width, height) in a block that the child has just filled, in RGB.

        Pillow knows that their memory is borrowed, and copies a picture before it changes it.
        """
        entry = self._entries.pop(block, None) or _Entry(mmap.mmap(self.descriptor, block.size, offset=block.place))
        is_copied = sum(not other.is_free for other in list(self._entries.values())) >= MOST
        self._trim(KEPT - block.size)
        pixels = np.frombuffer(entry.memory, np.uint8)
        entry.user, entry.is_free = weakref.ref(pixels, lambda _: self._given_back(block)), False
        self._entries[block] = entry
        images = []
        start = 0
        for width, height in sizes:
            end = start + 4 * width * height
            images.append(_picture(pixels[start:end], width, height))
            start = end
        return [image.copy() for image in images] if is_copied else images

    def _given_back(self, block: Block) -> None:
        entry = self._entries.get(block)
        # A process forked from this one has pictures too; that they are gone there says nothing here.
        if entry is None or os.getpid() != self._process:
            return
        if self._spare() + block.size > KEPT:
            self._drop(block)
        entry.is_free = True  # not before: a block that the child has been told of must not be dropped

    def _spare(self) -> int:
        return sum(block.size for block, entry in list(self._entries.items()) if entry.is_free)

    def _trim(self, num_bytes: int) -> None:
        """Keep at most so many bytes of free blocks, those used last."""
        for block, entry in list(self._entries.items()):
            if self._spare() <= num_bytes:
                return
            if entry.is_free:
                self._drop(block)

    def _drop(self, block: Block) -> None:
        entry = self._entries.pop(block, None)
        if entry is not None and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):  # not all file systems can; then the memory goes with the child
                entry.memory.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Give all blocks up; pictures in them stay as they are."""
        self._entries.clear()
        os.close(self.descriptor)


def _picture(pixels: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    words: Any = pa.Array.from_buffers(pa.uint32(), width * height, [None, pa.py_buffer(pixels)])
    return Image.fromarrow(words, "RGB", (width, height))
