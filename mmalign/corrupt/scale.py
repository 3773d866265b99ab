"""Damage by losing detail: low resolution and blur."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageFilter

from mmalign.corrupt.registry import Params, check_span, check_whole, corruption
from mmalign.types import Row


@corruption("low_resolution")
@dataclass(frozen=True, kw_only=True)
class LowResolution:
    """Shorter side scaled down to `short_side` pixels, aspect kept, bilinear, not scaled back (STIC's released code).

    640x480 becomes 26x20. A picture whose shorter side is under three times the target is scaled to a third instead
    (ours: 24 pixels scaled to 20 would be no damage).
    """

    short_side: int = 20

    def __post_init__(self) -> None:
        check_whole("low_resolution.short_side", self.short_side, 1, 10_000)

    def draw(self, rng: random.Random) -> Row:
        return {"short_side": self.short_side}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        if "width" in params:
            yield dict(params)
            return
        short, long = sorted(image.size)
        side = min(params["short_side"], max(1, short // 3))
        while True:
            # Rounded down, as torchvision does.
            other = max(1, int(side * long / short))
            width, height = (side, other) if image.width <= image.height else (other, side)
            yield {"short_side": side, "width": width, "height": height}
            if side == 1:
                return
            side = max(1, side // 2)

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        return image.resize((params["width"], params["height"]), Image.Resampling.BILINEAR)


@corruption("gaussian_blur")
@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Gaussian blur whose radius (standard deviation) is a share of the shorter side. Ours."""

    radius: tuple[float, float] = (0.03, 0.08)

    def __post_init__(self) -> None:
        check_span("gaussian_blur.radius", self.radius, 0.001, 1)

    def draw(self, rng: random.Random) -> Row:
        return {"radius": rng.uniform(*self.radius)}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        radius = params["radius"]
        yield {"radius": radius}
        while radius < 1:
            radius = min(1.0, 2 * radius)
            yield {"radius": radius}

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(params["radius"] * min(image.size)))
