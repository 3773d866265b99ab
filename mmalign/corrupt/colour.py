"""Damage to colour: brightness and hue shifted, or everything one colour."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from mmalign.corrupt.registry import Params, check_span, check_whole, corruption
from mmalign.errors import RecipeError
from mmalign.types import Row


@corruption("color_jitter")
@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness factor and hue shift (share of the hue circle) in random order, as in STIC's released code.

    Contrast and saturation stay. Pixels equal torchvision's `adjust_brightness` and `adjust_hue` on Pillow pictures.
    """

    brightness: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.3, 0.3)

    def __post_init__(self) -> None:
        check_span("color_jitter.brightness", self.brightness, 0, 10)
        check_span("color_jitter.hue", self.hue, -0.5, 0.5)

    def draw(self, rng: random.Random) -> Row:
        brightness, hue = rng.uniform(*self.brightness), rng.uniform(*self.hue)
        order = ["brightness", "hue"] if rng.random() < 0.5 else ["hue", "brightness"]
        return {"brightness": brightness, "hue": hue, "order": order}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        yield dict(params)
        # More of the same first; darker at last, since brightening leaves pure black and white as they are.
        change = max(abs(params["brightness"] - 1), 0.125)
        for brightness in (1 + 2 * change, max(0.25, 1 - 2 * change), 0.5, 0.25, 0.0):
            yield {**params, "brightness": brightness}

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        for step in params["order"]:
            if step == "brightness":
                image = ImageEnhance.Brightness(image).enhance(params["brightness"])
            else:
                image = _hue_shifted(image, params["hue"])
        return image


def _hue_shifted(image: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(share * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@corruption("blank")
@dataclass(frozen=True, kw_only=True)
class Blank:
    """The whole picture in one colour: what a model says then comes from its language alone."""

    colour: tuple[int, int, int] = (127, 127, 127)

    def __post_init__(self) -> None:
        if len(self.colour) != 3:
            raise RecipeError(f"corruption blank.colour: got {self.colour!r}, need three whole numbers")
        for level in self.colour:
            check_whole("blank.colour", level, 0, 255)

    def draw(self, rng: random.Random) -> Row:
        return {"colour": list(self.colour)}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        yield dict(params)

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        red, green, blue = params["colour"]
        return Image.new("RGB", image.size, (red, green, blue))
