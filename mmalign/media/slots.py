"""Shared memory through which a child hands over frames: a few slots, used in turn."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Frames that a child may be ahead of its parent.
NUM_SLOTS: Final = 32


def shared_memory() -> int:
    """A descriptor of memory without a name; on systems that know no such thing, of a file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mmalign-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slots:
    """`num` slots of `size` bytes each in shared memory, which is made larger where it is too small."""

    def __init__(self, descriptor: int, size: int, num: int) -> None:
        self.size, self.num = size, num
        if os.fstat(descriptor).st_size < size * num:
            os.ftruncate(descriptor, size * num)
        self._memory = mmap.mmap(descriptor, size * num)

    def pixels(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        """The frame in the slot of the `number`-th frame, (height, width, 3), to be read or written."""
        place = number % self.num * self.size
        return np.frombuffer(self._memory, np.uint8, 3 * width * height, place).reshape(height, width, 3)
