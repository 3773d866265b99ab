"""Any colour mode of Pillow to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Pixels that are converted at once.
STRIP: Final = 2**22


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; transparent parts show white.

    16-bit greys are scaled from 0..65535 to 0..255 (Pillow would clip or cut them). 32-bit whole numbers are taken for
    16-bit ones where they fit. Floats in 0..1 are scaled, floats in 0..255 kept; any other range is stretched from its
    least to its greatest value. Beside the picture and its copy only a strip of it is held at a time. Raises ValueError
    for floats that are not finite and for modes without a conversion.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    convert = _conversion(image)
    strips = _strips(image.size)
    if len(strips) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for strip in strips:
        whole.paste(convert(image.crop(strip)), strip[:2])
    return whole


def _strips(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, STRIP // width)
    return [(0, top, width, min(height, top + rows)) for top in range(0, height, rows)]


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of a strip of this picture."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion knows the byte orders; mode I holds every value.
        return lambda strip: _grey(_from_16_bit(np.asarray(strip.convert("I"))))
    if image.mode in ("I", "F"):
        low, high = _range(image)
        if image.mode == "I" and low >= 0 and high <= 65535:
            return lambda strip: _grey(_from_16_bit(np.asarray(strip)))
        if image.mode == "I" or low < 0 or high > 255:
            return lambda strip: _grey(_stretched(np.asarray(strip).astype(np.float64), low, high))
        scale = 255 if high <= 1 else 1
        return lambda strip: _grey(np.rint(np.asarray(strip).astype(np.float64) * scale).astype(np.uint8))
    if image.has_transparency_data:
        return _on_white
    return lambda strip: strip.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value. Raises ValueError for values that are not finite."""
    lows, highs = [], []
    for strip in _strips(image.size):
        values = np.asarray(image.crop(strip))
        if not np.isfinite(values).all():
            raise ValueError("holds values that are not finite")
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    return min(lows), max(highs)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(rgba, mask=rgba.getchannel("A"))
    return paper


def _grey(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _from_16_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    # 65535 = 257 * 255, so this is rounding of value / 257.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _stretched(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
