"""Any colour mode of Pillow to 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; transparent parts show white.

    16-bit greys are scaled from 0..65535 to 0..255 (Pillow would clip or cut them). 32-bit whole numbers are taken for
    16-bit ones where they fit. Floats in 0..1 are scaled, floats in 0..255 kept; any other range is stretched from its
    least to its greatest value. Raises ValueError for floats that are not finite and for modes without a conversion.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion knows the byte orders; mode I holds every value.
        return _grey(_from_16_bit(np.asarray(image.convert("I"))))
    if image.mode == "I":
        values = np.asarray(image)
        fits = values.min() >= 0 and values.max() <= 65535
        return _grey(_from_16_bit(values) if fits else _stretched(values.astype(np.float64)))
    if image.mode == "F":
        return _grey(_from_float(np.asarray(image).astype(np.float64)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return image.convert("RGB")


def _grey(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _from_16_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    # 65535 = 257 * 255, so this is rounding of value / 257.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_float(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        return _stretched(values)
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)


def _stretched(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
