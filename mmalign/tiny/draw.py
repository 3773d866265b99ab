"""Renders scenes as 64x64 RGB pictures: flat silhouettes with a dark outline on a lightly grained background."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from mmalign.tiny.world import COLOURS, Scene, Thing

Pixels = npt.NDArray[np.uint8]

#: Width and height of every picture, in pixels.
SIDE: Final = 64
#: Width and height of an icon with its outline, in pixels.
ICON: Final = {"small": 12, "big": 19}
#: Middle of each row and column of the grid, in pixels.
MIDDLES: Final = (12, 32, 52)
OUTLINE: Final = (34, 34, 40)
TINTS: Final = {"sea": (196, 222, 238), "garden": (212, 234, 202), "sky": (222, 220, 246), "table": (242, 226, 206)}
PLAIN: Final = (226, 226, 226)
_FINE: Final = 8  # drawn this many times larger, then box-averaged


class _Pen:
    """Draws in unit coordinates on a fine mask of the body and one of dark inner lines."""

    def __init__(self, side: int) -> None:
        self.margin = 0.75 * _FINE
        self.span = side * _FINE - 2 * self.margin
        self.body = Image.new("L", (side * _FINE, side * _FINE), 0)
        self.lines = Image.new("L", self.body.size, 0)
        self._body, self._lines = ImageDraw.Draw(self.body), ImageDraw.Draw(self.lines)

    def _at(self, *numbers: float) -> list[float]:
        return [self.margin + number * self.span for number in numbers]

    def oval(self, left: float, top: float, right: float, bottom: float, fill: int = 255) -> None:
        self._body.ellipse(self._at(left, top, right, bottom), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: int = 255) -> None:
        self.oval(x - radius, y - radius, x + radius, y + radius, fill)

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        self._body.rectangle(self._at(left, top, right, bottom), fill=255)

    def shape(self, *corners: float) -> None:
        self._body.polygon(self._at(*corners), fill=255)

    def stroke(self, width: float, *points: float) -> None:
        self._body.line(self._at(*points), fill=255, width=round(width * self.span), joint="curve")

    def arc(self, box: tuple[float, float, float, float], start: int, end: int, width: float) -> None:
        self._body.arc(self._at(*box), start, end, fill=255, width=round(width * self.span))

    def half(self, box: tuple[float, float, float, float], start: int, end: int) -> None:
        self._body.chord(self._at(*box), start, end, fill=255)

    def dark_line(self, width: float, *points: float) -> None:
        self._lines.line(self._at(*points), fill=255, width=round(width * self.span))

    def dark_disc(self, x: float, y: float, radius: float) -> None:
        self._lines.ellipse(self._at(x - radius, y - radius, x + radius, y + radius), fill=255)

    def dark_box(self, left: float, top: float, right: float, bottom: float) -> None:
        self._lines.rectangle(self._at(left, top, right, bottom), fill=255)


def _fish(pen: _Pen) -> None:
    pen.oval(0.0, 0.22, 0.74, 0.78)
    pen.shape(0.62, 0.5, 1.0, 0.16, 1.0, 0.84)
    pen.dark_disc(0.2, 0.43, 0.065)


def _boat(pen: _Pen) -> None:
    pen.shape(0.0, 0.62, 1.0, 0.62, 0.8, 0.96, 0.2, 0.96)
    pen.box(0.44, 0.0, 0.53, 0.65)
    pen.shape(0.5, 0.02, 0.94, 0.52, 0.5, 0.52)
    pen.dark_line(0.06, 0.0, 0.64, 1.0, 0.64)


def _anchor(pen: _Pen) -> None:
    pen.disc(0.5, 0.14, 0.15)
    pen.disc(0.5, 0.14, 0.05, fill=0)
    pen.box(0.42, 0.25, 0.58, 0.95)
    pen.box(0.2, 0.33, 0.8, 0.46)
    pen.arc((0.02, 0.2, 0.98, 1.0), 10, 170, 0.15)
    pen.shape(0.0, 0.7, 0.0, 0.45, 0.24, 0.66)
    pen.shape(1.0, 0.7, 1.0, 0.45, 0.76, 0.66)


def _crab(pen: _Pen) -> None:
    pen.oval(0.18, 0.38, 0.82, 0.86)
    for side in (0.0, 1.0):
        pen.disc(abs(side - 0.13), 0.18, 0.16)
        pen.stroke(0.09, abs(side - 0.13), 0.25, abs(side - 0.28), 0.5)
        pen.stroke(0.08, abs(side - 0.25), 0.65, abs(side - 0.0), 0.66)
        pen.stroke(0.08, abs(side - 0.3), 0.78, abs(side - 0.06), 0.97)
        pen.dark_disc(abs(side - 0.4), 0.52, 0.05)


def _tree(pen: _Pen) -> None:
    pen.box(0.4, 0.75, 0.6, 1.0)
    pen.shape(0.5, 0.0, 0.86, 0.48, 0.14, 0.48)
    pen.shape(0.5, 0.25, 1.0, 0.8, 0.0, 0.8)


def _flower(pen: _Pen) -> None:
    pen.box(0.46, 0.5, 0.54, 1.0)
    pen.shape(0.5, 0.95, 0.85, 0.72, 0.6, 0.98)
    for petal in range(5):
        angle = 2 * math.pi * petal / 5 - math.pi / 2
        pen.disc(0.5 + 0.23 * math.cos(angle), 0.34 + 0.22 * math.sin(angle), 0.15)
    pen.dark_disc(0.5, 0.34, 0.1)


def _house(pen: _Pen) -> None:
    pen.shape(0.5, 0.0, 1.0, 0.48, 0.0, 0.48)
    pen.box(0.12, 0.45, 0.88, 1.0)
    pen.dark_box(0.4, 0.66, 0.6, 1.0)
    pen.dark_line(0.04, 0.05, 0.47, 0.95, 0.47)


def _mushroom(pen: _Pen) -> None:
    pen.half((0.0, 0.04, 1.0, 1.06), 180, 360)
    pen.box(0.34, 0.5, 0.66, 1.0)
    pen.dark_line(0.05, 0.0, 0.55, 1.0, 0.55)
    for x, y in ((0.28, 0.36), (0.52, 0.2), (0.75, 0.38)):
        pen.dark_disc(x, y, 0.06)


def _cloud(pen: _Pen) -> None:
    pen.disc(0.22, 0.62, 0.22)
    pen.disc(0.5, 0.42, 0.28)
    pen.disc(0.78, 0.6, 0.22)
    pen.box(0.22, 0.6, 0.78, 0.84)


def _sun(pen: _Pen) -> None:
    for ray in range(8):
        angle = 2 * math.pi * ray / 8
        tip = (0.5 + 0.52 * math.cos(angle), 0.5 + 0.52 * math.sin(angle))
        feet = [0.5 + 0.28 * f(angle + turn) for turn in (0.35, -0.35) for f in (math.cos, math.sin)]
        pen.shape(*tip, *feet)
    pen.disc(0.5, 0.5, 0.27)


def _moon(pen: _Pen) -> None:
    pen.disc(0.46, 0.5, 0.5)
    pen.disc(0.74, 0.42, 0.42, fill=0)


def _kite(pen: _Pen) -> None:
    pen.shape(0.5, 0.0, 0.95, 0.34, 0.5, 0.8, 0.05, 0.34)
    pen.stroke(0.06, 0.5, 0.78, 0.66, 0.86, 0.42, 0.92, 0.6, 1.0)
    pen.dark_line(0.05, 0.5, 0.0, 0.5, 0.8)
    pen.dark_line(0.05, 0.05, 0.34, 0.95, 0.34)


def _cup(pen: _Pen) -> None:
    pen.disc(0.76, 0.48, 0.24)
    pen.disc(0.78, 0.48, 0.1, fill=0)
    pen.shape(0.0, 0.12, 0.74, 0.12, 0.64, 0.94, 0.1, 0.94)
    pen.dark_line(0.05, 0.04, 0.26, 0.7, 0.26)


def _apple(pen: _Pen) -> None:
    pen.disc(0.32, 0.62, 0.32)
    pen.disc(0.68, 0.62, 0.32)
    pen.oval(0.2, 0.5, 0.8, 1.0)
    pen.stroke(0.09, 0.5, 0.4, 0.54, 0.06)
    pen.oval(0.54, 0.04, 0.9, 0.24)


def _key(pen: _Pen) -> None:
    pen.disc(0.24, 0.4, 0.26)
    pen.disc(0.24, 0.4, 0.1, fill=0)
    pen.box(0.4, 0.33, 1.0, 0.47)
    pen.box(0.66, 0.4, 0.76, 0.74)
    pen.box(0.88, 0.4, 1.0, 0.8)


def _book(pen: _Pen) -> None:
    pen.shape(0.0, 0.14, 0.5, 0.28, 0.5, 0.94, 0.0, 0.8)
    pen.shape(1.0, 0.14, 0.5, 0.28, 0.5, 0.94, 1.0, 0.8)
    pen.dark_line(0.06, 0.5, 0.28, 0.5, 0.94)
    for y in (0.4, 0.58):
        pen.dark_line(0.04, 0.1, y - 0.04, 0.4, y + 0.04)
        pen.dark_line(0.04, 0.6, y + 0.04, 0.9, y - 0.04)


_ICONS: Final[dict[str, Callable[[_Pen], None]]] = {
    "fish": _fish,
    "boat": _boat,
    "anchor": _anchor,
    "crab": _crab,
    "tree": _tree,
    "flower": _flower,
    "house": _house,
    "mushroom": _mushroom,
    "cloud": _cloud,
    "sun": _sun,
    "moon": _moon,
    "kite": _kite,
    "cup": _cup,
    "apple": _apple,
    "key": _key,
    "book": _book,
}


@cache
def _stencil(kind: str, side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Coverage of the coloured body and of everything (body, outline and lines), each side x side in 0 to 1."""
    pen = _Pen(side)
    _ICONS[kind](pen)
    whole = pen.body.filter(ImageFilter.MaxFilter(2 * round(0.7 * _FINE) + 1))
    lines = np.minimum(np.asarray(pen.lines), np.asarray(whole))
    body = np.where(lines > 0, 0, np.asarray(pen.body)).astype(np.uint8)

    def shrink(fine: Image.Image) -> npt.NDArray[np.float32]:
        small = np.asarray(fine.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
        return small / np.float32(255)

    return shrink(Image.fromarray(body)), shrink(whole)


@cache
def _sprite(kind: str, colour: str, side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colour already weighted by its coverage, and the coverage: (side, side, 3) and (side, side, 1)."""
    body, whole = (mask[..., None] for mask in _stencil(kind, side))
    paint, outline = np.asarray(COLOURS[colour], np.float32), np.asarray(OUTLINE, np.float32)
    return body * paint + np.maximum(whole - body, 0) * outline, whole


def corner(thing: Thing) -> tuple[int, int]:
    """Row and column of the icon's upper left pixel."""
    row, column = thing.cell
    half = ICON[thing.size] // 2
    return MIDDLES[row] + thing.shift[1] - half, MIDDLES[column] + thing.shift[0] - half


def coverage(thing: Thing) -> npt.NDArray[np.float32]:
    """How much of each pixel the thing covers, (64, 64) in 0 to 1: the exact mask for dense labels."""
    field = np.zeros((SIDE, SIDE), dtype=np.float32)
    side = ICON[thing.size]
    top, left = corner(thing)
    field[top : top + side, left : left + side] = _stencil(thing.kind, side)[1]
    return field


def stamp(canvas: npt.NDArray[np.float32], thing: Thing, top: int, left: int) -> None:
    """Draw a thing into a float canvas (64, 64, 3) with its icon's corner at a pixel; what falls outside is cut off."""
    side = ICON[thing.size]
    ink, whole = _sprite(thing.kind, thing.colour, side)
    rows = slice(max(top, 0), min(top + side, SIDE))
    columns = slice(max(left, 0), min(left + side, SIDE))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    canvas[rows, columns] = canvas[rows, columns] * (1 - whole[inner]) + ink[inner]


def backdrop(theme: str | None, grain: int) -> npt.NDArray[np.float32]:
    """A background (64, 64, 3): the theme's tint, or grey for None, with grain of its own seed."""
    tint = np.asarray(PLAIN if theme is None else TINTS[theme], np.float32)
    noise = np.random.Generator(np.random.PCG64(grain)).integers(-7, 8, (SIDE, SIDE, 1))
    return (tint + noise).astype(np.float32)


def pixels(scene: Scene) -> Pixels:
    """The picture of a scene as an array (64, 64, 3) of 8-bit RGB."""
    canvas = backdrop(scene.theme if scene.tinted else None, scene.grain)
    for thing in scene.objects:
        stamp(canvas, thing, *corner(thing))
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def draw_scene(scene: Scene) -> Image.Image:
    """The picture of a scene: PIL, RGB, 64x64."""
    return Image.fromarray(pixels(scene))


def blank(theme: str | None = None, grain: int = 0) -> Image.Image:
    """A picture of nothing: only the background (grey when no theme is given)."""
    return Image.fromarray((backdrop(theme, grain) + 0.5).clip(0, 255).astype(np.uint8))
