"""Corruptions by name: draw exact parameters, apply them, and apply the recorded ones again to the same pixels."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar, overload

from PIL import Image

from mmalign.errors import MediaError, RecipeError
from mmalign.types import Clip, Corruption, Media, MediaRef, Picture, Row

Params = Mapping[str, Any]
#: Opens media that a corruption's parameters name beside the ones it damages.
Opener = Callable[[MediaRef], Media]


class Damage(Protocol):
    """One kind of damage to a picture: a frozen dataclass whose fields are the ranges that parameters are drawn from.

    In a clip every frame is damaged with the same parameters: the same box, the same colours.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def draw(self, rng: random.Random) -> Row:
        """Exact parameters as JSON values; where noise is needed they hold an integer `seed`."""

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        """The parameters to try on this picture, in order: the drawn ones, then stronger ones.

        What depends on the picture's size is settled here, so that recorded parameters come back unchanged first. Of
        a clip this is the first frame.
        """

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        """Other pixels; the same ones for the same picture and parameters, on any machine and in any order of calls."""


class ClipDamage(Protocol):
    """One kind of damage to a clip as a whole; like `Damage`, with all frames and their times at once."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def draw(self, rng: random.Random) -> Row:
        """Exact parameters as JSON values, as far as they do not depend on the clip."""

    @staticmethod
    def attempts(clip: Clip, params: Params) -> Iterator[Row]:
        """The parameters to try on this clip, in order: the drawn ones, then stronger ones.

        What depends on the number of frames is settled here; recorded parameters come back unchanged first.
        """

    @staticmethod
    def apply(clip: Clip, params: Params, opener: Opener | None) -> tuple[Sequence[Image.Image], Sequence[float]]:
        """Other frames with their times in seconds, ascending; always the same ones for the same clip and parameters.

        `opener` opens what the parameters name beside the clip.
        """


@dataclasses.dataclass(frozen=True)
class _PictureKind:
    damage: type[Damage]
    seed_per_frame: bool


@dataclasses.dataclass(frozen=True)
class _ClipKind:
    damage: type[ClipDamage]


D = TypeVar("D", bound=type[Damage])
C = TypeVar("C", bound=type[ClipDamage])
_KINDS: dict[str, _PictureKind | _ClipKind] = {}


@overload
def corruption(name: str, *, media: Literal["image"] = "image", seed_per_frame: bool = False) -> Callable[[D], D]: ...


@overload
def corruption(name: str, *, media: Literal["video"]) -> Callable[[C], C]: ...


def corruption(
    name: str, *, media: Literal["image", "video"] = "image", seed_per_frame: bool = False
) -> Callable[[Any], Any]:
    """Class decorator that registers a damage under `name`: a `Damage` of pictures, or a `ClipDamage` of videos.

    With `seed_per_frame` a picture's damage has another `seed` in every frame of a clip, as the noise of a camera has;
    see `frame_seed`. Raises ValueError when the name is taken.
    """

    def register(damage: Any) -> Any:
        taken = _KINDS.get(name)
        if taken is not None and taken.damage.__qualname__ != damage.__qualname__:
            raise ValueError(f"the corruption {name!r} exists already")
        _KINDS[name] = _ClipKind(damage) if media == "video" else _PictureKind(damage, seed_per_frame)
        return damage

    return register


def corruption_names(media: Literal["image", "video"] = "image") -> list[str]:
    """Names of all corruptions that can be done to one kind of media, sorted; those of pictures work on videos too."""
    return sorted(name for name, kind in _KINDS.items() if media == "video" or isinstance(kind, _PictureKind))


def draw(name: str, rng: random.Random, **ranges: Any) -> Corruption:
    """Draw exact parameters of a corruption from its ranges; `ranges` replaces the defaults by field name.

    What the size of the media adds to them is settled by `apply`. Raises RecipeError for unknown names and ranges.
    """
    kind: Any = find_corruption(name)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in ranges:
        if key not in known:
            raise RecipeError(f"corruption {name}: unknown range {key!r}{_nearest(key, known)}")
    fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in ranges.items()}
    drawn: Row = kind(**fixed).draw(rng)
    return Corruption(name, drawn)


@overload
def apply(media: Picture, corruption: Corruption, opener: Opener | None = None) -> Picture: ...


@overload
def apply(media: Clip, corruption: Corruption, opener: Opener | None = None) -> Clip: ...


def apply(media: Media, corruption: Corruption, opener: Opener | None = None) -> Media:
    """The damaged picture or clip; its reference records the parameters that were really used.

    Those are the given ones, or stronger ones found in a fixed order where the given ones would change no pixel. With
    recorded parameters the result is the same, pixel by pixel. A picture's corruption is done to every frame of a clip
    alike. `opener` opens the other clip that a recorded `clip_swap` names.

    Raises MediaError when no strength changes the media, as with a picture of one colour or the order of a clip that
    stands still, so that "damaged" media never equal their source. Raises RecipeError for a video's corruption of a
    picture.
    """
    find_corruption(corruption.name)
    kind = _KINDS[corruption.name]
    damaged: Media | None
    if isinstance(media, Clip):
        damaged = _applied_to_clip(media, corruption, kind, opener)
    elif isinstance(kind, _PictureKind):
        damaged = _applied_to_picture(media, corruption, kind)
    else:
        raise RecipeError(f"corruption {corruption.name}: is one of videos, {media.ref.path} is a picture")
    if damaged is not None:
        return damaged
    width, height = (media.images[0] if isinstance(media, Clip) else media.image).size
    what = f"clip of {len(media.images)} frames of" if isinstance(media, Clip) else "picture of"
    why = "has it one colour only" if isinstance(kind, _PictureKind) else "does it stand still"
    raise MediaError(
        f"{media.ref.path}: cannot be corrupted by {corruption.name}, no strength changes this {what} "
        f"{width}x{height} pixels; {why}?"
    )


def _applied_to_picture(picture: Picture, corruption: Corruption, kind: _PictureKind) -> Picture | None:
    for params in kind.damage.attempts(picture.image, corruption.params):
        image = kind.damage.apply(picture.image, params)
        if not looks_equal(picture.image, image):
            return picture.damaged(image, Corruption(corruption.name, params))
    return None


def _applied_to_clip(
    clip: Clip, corruption: Corruption, kind: _PictureKind | _ClipKind, opener: Opener | None
) -> Clip | None:
    if isinstance(kind, _ClipKind):
        for params in kind.damage.attempts(clip, corruption.params):
            images, times = kind.damage.apply(clip, params, opener)
            if not clips_look_equal(clip, images, times):
                return clip.damaged(images, times, Corruption(corruption.name, params))
        return None
    for params in kind.damage.attempts(clip.images[0], corruption.params):
        images = []
        for number, image in enumerate(clip.images):
            own = {**params, "seed": frame_seed(params["seed"], number)} if kind.seed_per_frame else params
            images.append(kind.damage.apply(image, own))
        if not clips_look_equal(clip, images, clip.times):
            return clip.damaged(images, clip.times, Corruption(corruption.name, params))
    return None


def frame_seed(seed: int, number: int) -> int:
    """The seed of one frame's noise, 0 to 2**32 - 1: the recorded `seed` for the first frame, then a hash of both."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


def looks_equal(before: Image.Image, after: Image.Image) -> bool:
    """Whether two pictures have the same pixels once the second is brought to the size of the first.

    A processor scales pictures anyway, so a smaller picture of one and the same colour is no damage.
    """
    if after.size != before.size:
        after = after.resize(before.size, Image.Resampling.BILINEAR)
    return before.tobytes() == after.tobytes()


def clips_look_equal(before: Clip, images: Sequence[Image.Image], times: Sequence[float]) -> bool:
    """Whether at each of a clip's times the same pixels are on the screen as with other `images` at other `times`.

    So a clip has lost nothing when a frame is gone that looked like the one before it.
    """
    shown = (images[place] for place in on_screen(times, before.times))
    return all(old is new or looks_equal(old, new) for old, new in zip(before.images, shown, strict=True))


def on_screen(times: Sequence[float], moments: Sequence[float]) -> Sequence[int]:
    """For each of the `moments` the place of the frame that is shown then: the last one begun, or else the first.

    As many frames as moments are shown one at each.
    """
    if len(times) == len(moments):
        return range(len(times))
    return [max(0, bisect_right(times, moment) - 1) for moment in moments]


def check_span(name: str, span: tuple[float, float], low: float, high: float) -> None:
    """Raise RecipeError unless `span` is an ascending pair of numbers within [low, high]."""
    good = isinstance(span, tuple) and len(span) == 2 and all(isinstance(end, int | float) for end in span)
    if not good or not low <= span[0] <= span[1] <= high:
        raise RecipeError(f"corruption {name}: got {span!r}, need [least, greatest] within {low:g} to {high:g}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Raise RecipeError unless `value` is a whole number within [low, high]."""
    if not isinstance(value, int) or not low <= value <= high:
        raise RecipeError(f"corruption {name}: got {value!r}, need a whole number from {low} to {high}")


def check_corruptions(names: Sequence[str], ranges: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError or RecipeError unless every name is of a damage that `draw` and `apply` can do to one medium.

    `ranges` are what `draw` will be given, by name: they are refused here as they would be there. What needs a second
    clip beside the damaged one cannot be named in a recipe.
    """
    alone = [name for name in corruption_names("video") if not getattr(_KINDS[name].damage, "needs_other", False)]
    if not names:
        raise ValueError("corruptions: must not be empty")
    for name in names:
        if name in _KINDS and name not in alone:
            raise ValueError(f"corruptions: {name!r} needs a second clip, which samples do not have; drop it")
        if name not in alone:
            raise ValueError(f"corruptions: {name!r} is unknown{_nearest(name, alone)}; there are {', '.join(alone)}")
        draw(name, random.Random(0), **ranges.get(name, {}))


def find_corruption(name: str) -> type[Damage] | type[ClipDamage]:
    """The class of a corruption; its fields are the ranges. Raises RecipeError with the nearest name."""
    if name not in _KINDS:
        raise RecipeError(f"unknown corruption {name!r}{_nearest(name, list(_KINDS))}; there are {', '.join(_KINDS)}")
    return _KINDS[name].damage


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f", did you mean {near[0]!r}?" if near else ""
