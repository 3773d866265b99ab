"""Corruptions by name: draw exact parameters, apply them, and apply the recorded ones again to the same pixels."""

from __future__ import annotations

import dataclasses
import difflib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from PIL import Image

from mmalign.errors import MediaError, RecipeError
from mmalign.types import Corruption, Picture, Row

Params = Mapping[str, Any]


class Damage(Protocol):
    """One kind of damage: a frozen dataclass whose fields are the ranges that parameters are drawn from."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def draw(self, rng: random.Random) -> Row:
        """Exact parameters as JSON values; where noise is needed they hold an integer `seed`."""

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        """The parameters to try on this picture, in order: the drawn ones, then stronger ones.

        What depends on the picture's size is settled here, so that recorded parameters come back unchanged first.
        """

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        """Other pixels; the same ones for the same picture and parameters, on any machine and in any order of calls."""


D = TypeVar("D", bound=type[Damage])
_KINDS: dict[str, tuple[Literal["image", "video"], type[Damage]]] = {}


def corruption(name: str, *, media: Literal["image", "video"] = "image") -> Callable[[D], D]:
    """Class decorator that registers a `Damage` under `name`. Raises ValueError when the name is taken."""

    def register(kind: D) -> D:
        taken = _KINDS.get(name)
        if taken is not None and taken[1].__qualname__ != kind.__qualname__:
            raise ValueError(f"the corruption {name!r} exists already")
        _KINDS[name] = (media, kind)
        return kind

    return register


def corruption_names(media: Literal["image", "video"] = "image") -> list[str]:
    """Registered names for one kind of media, sorted."""
    return sorted(name for name, (kind, _) in _KINDS.items() if kind == media)


def draw(name: str, rng: random.Random, **ranges: Any) -> Corruption:
    """Draw exact parameters of a corruption from its ranges; `ranges` replaces the defaults by field name.

    What a picture's size adds to them is settled by `apply`. Raises RecipeError for unknown names and ranges.
    """
    kind = find_corruption(name)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in ranges:
        if key not in known:
            raise RecipeError(f"corruption {name}: unknown range {key!r}{_nearest(key, known)}")
    fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in ranges.items()}
    return Corruption(name, kind(**fixed).draw(rng))


def apply(picture: Picture, corruption: Corruption) -> Picture:
    """The damaged picture; its reference records the parameters that were really used.

    Those are the given ones, or stronger ones found in a fixed order where the given ones would change no pixel. With
    recorded parameters the result is the same, pixel by pixel. Raises MediaError when no strength changes the picture,
    as with a picture of one colour, so that a "damaged" picture never equals its source.
    """
    kind = find_corruption(corruption.name)
    for params in kind.attempts(picture.image, corruption.params):
        image = kind.apply(picture.image, params)
        if not looks_equal(picture.image, image):
            return picture.damaged(image, Corruption(corruption.name, params))
    width, height = picture.image.size
    raise MediaError(
        f"{picture.ref.path}: cannot be corrupted by {corruption.name}, no strength changes this picture of "
        f"{width}x{height} pixels; has it one colour only?"
    )


def looks_equal(before: Image.Image, after: Image.Image) -> bool:
    """Whether two pictures have the same pixels once the second is brought to the size of the first.

    A processor scales pictures anyway, so a smaller picture of one and the same colour is no damage.
    """
    if after.size != before.size:
        after = after.resize(before.size, Image.Resampling.BILINEAR)
    return before.tobytes() == after.tobytes()


def check_span(name: str, span: tuple[float, float], low: float, high: float) -> None:
    """Raise RecipeError unless `span` is an ascending pair of numbers within [low, high]."""
    good = isinstance(span, tuple) and len(span) == 2 and all(isinstance(end, int | float) for end in span)
    if not good or not low <= span[0] <= span[1] <= high:
        raise RecipeError(f"corruption {name}: got {span!r}, need [least, greatest] within {low:g} to {high:g}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Raise RecipeError unless `value` is a whole number within [low, high]."""
    if not isinstance(value, int) or not low <= value <= high:
        raise RecipeError(f"corruption {name}: got {value!r}, need a whole number from {low} to {high}")


def find_corruption(name: str) -> type[Damage]:
    """The class of a corruption; its fields are the ranges. Raises RecipeError with the nearest name."""
    if name not in _KINDS:
        raise RecipeError(f"unknown corruption {name!r}{_nearest(name, list(_KINDS))}; there are {', '.join(_KINDS)}")
    return _KINDS[name][1]


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f", did you mean {near[0]!r}?" if near else ""
