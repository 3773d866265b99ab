"""Damage to regions: a crop, a covered box, patches in another order. The size of the picture stays."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from mmalign.corrupt.registry import Params, check_span, check_whole, corruption
from mmalign.types import Row


@corruption("crop")
@dataclass(frozen=True, kw_only=True)
class Crop:
    """A small part of the picture scaled up to its full size; `area` is the part's share (mDPO: 1 to 20 %).

    Aspect is kept (mDPO's code varies it by 3:4 to 4:3).
    """

    area: tuple[float, float] = (0.01, 0.2)

    def __post_init__(self) -> None:
        check_span("crop.area", self.area, 0.0001, 0.9)

    def draw(self, rng: random.Random) -> Row:
        return {"area": rng.uniform(*self.area), "x": rng.random(), "y": rng.random()}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        area = params["area"]
        yield dict(params)
        while math.sqrt(area) * max(image.size) > 1:
            area /= 4
            yield {**params, "area": area}

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        share = math.sqrt(params["area"])
        width, height = max(1, round(share * image.width)), max(1, round(share * image.height))
        left, top = _corner(image, params, width, height)
        return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BILINEAR)


@corruption("box_mask")
@dataclass(frozen=True, kw_only=True)
class BoxMask:
    """One square box at a random place filled with a flat grey; `area` is its share of the picture (RRPO: 25 to 50 %).

    A box longer than the picture's shorter side is cut down to a square of that side. In a clip it stays in its place.
    """

    area: tuple[float, float] = (0.25, 0.5)
    level: int = 245

    def __post_init__(self) -> None:
        check_span("box_mask.area", self.area, 0.0001, 1)
        check_whole("box_mask.level", self.level, 0, 255)

    def draw(self, rng: random.Random) -> Row:
        return {"area": rng.uniform(*self.area), "x": rng.random(), "y": rng.random(), "level": self.level}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        if "box" in params:
            yield dict(params)
            return
        side = box_side(image.width, image.height, params["area"])
        left, top = _corner(image, params, side, side)
        settled = {**params, "box": [left, top, left + side, top + side]}
        yield settled
        # Where the covered part had the filling's colour already, the opposite grey shows.
        yield {**settled, "level": 255 - params["level"]}

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        left, top, right, bottom = params["box"]
        covered = image.copy()
        covered.paste((params["level"],) * 3, (left, top, right, bottom))
        return covered


def box_side(width: int, height: int, area: float) -> int:
    """Side in pixels of the square that covers a share `area` of a picture, at most the picture's shorter side."""
    return max(1, min(width, height, round(math.sqrt(area * width * height))))


@corruption("patch_shuffle")
@dataclass(frozen=True, kw_only=True)
class PatchShuffle:
    """The picture cut into a grid of equal patches that change places; `grid` is the number along each side. Ours.

    Pixels left over at the right and the bottom stay where they are.
    """

    grid: tuple[int, int] = (4, 8)

    def __post_init__(self) -> None:
        check_span("patch_shuffle.grid", self.grid, 2, 64)
        for end in self.grid:
            check_whole("patch_shuffle.grid", end, 2, 64)

    def draw(self, rng: random.Random) -> Row:
        return {"grid": rng.randint(*self.grid), "seed": rng.getrandbits(32)}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        # A finer grid moves finer patterns; three orders each, since equal patches may change places unseen.
        grid = params["grid"]
        while True:
            for turn in range(3):
                yield {"grid": grid, "seed": (params["seed"] + turn) % 2**32}
            if grid >= min(64, max(image.size)):
                return
            grid *= 2

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        columns, rows = min(params["grid"], image.width), min(params["grid"], image.height)
        width, height = image.width // columns, image.height // rows
        corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        shuffled = image.copy()
        for (left, top), (x, y) in zip(corners, shuffled_order(corners, params["seed"]), strict=True):
            shuffled.paste(image.crop((x, y, x + width, y + height)), (left, top))
        return shuffled


def shuffled_order(corners: list[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    """The corners in an order that only depends on `seed`; never the order given, if there are two or more."""
    # Sorting by `random()` rather than `shuffle`: of the two, Python promises only the first to stay as it is.
    rng = random.Random(seed)
    keys = [rng.random() for _ in corners]
    order = [corner for _, corner in sorted(zip(keys, corners, strict=True))]
    return order if order != corners else order[1:] + order[:1]


def _corner(image: Image.Image, params: Params, width: int, height: int) -> tuple[int, int]:
    """Left and top of a box of this size; `x` and `y` in 0..1 reach from one edge of the picture to the other."""
    return round(params["x"] * (image.width - width)), round(params["y"] * (image.height - height))
