"""What a backend is told of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmalign.media.index import Index

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Source:
    """A file, its index, and the size (width, height) in pixels, before rotation, that frames are scaled to."""

    path: Path
    index: Index
    is_counted: bool
    size: tuple[int, int]
    container: Any
    stream: Any


Backend = Callable[[Source, Sequence[int]], Iterator[Pixels]]


class CannotGiveError(Exception):
    """A backend cannot open the file or give the very frames that were asked for; the text says why."""


def turned(pixels: Pixels, degrees: int) -> Pixels:
    """The picture turned counter-clockwise by a multiple of 90 degrees; other angles count as none."""
    return np.rot90(pixels, degrees // 90) if degrees % 360 in (90, 180, 270) else pixels


def fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """An upright picture scaled to `size`, which is (width, height) before it was turned."""
    height, width, _ = pixels.shape
    target = size if (width >= height) == (size[0] >= size[1]) else size[::-1]
    if target == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC))
