"""Methods: how preference pairs come to be. One file per paper; a method is found by its module's name.

A method is a class under `@method`: its annotated fields are its parameters, and `pairs` is written for one sample as
straight-line async code. Batching, resuming and seeding are the engine's work. A method in a user's own file is named
`path/to/file.py:Class`, one in an installed package `package.module:Class`.

The kinds of media that a method takes are part of its registration; samples with others never reach it, and samples
without media only where it takes "text".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
    runtime_checkable,
)

from mmalign.errors import NoPair, RecipeError, SampleError
from mmalign.own_code import module_at
from mmalign.types import MediaKind, MediaRef, Pair, Row, Sample

if TYPE_CHECKING:
    from mmalign.lm.bound import SampleLM
    from mmalign.pairs import PairRow

C = TypeVar("C", bound=type)


class Method(Protocol):
    """What every method has. `rng` is seeded by (seed, round, sample id); use no other source of chance.

    Tasks that run side by side share `rng`: draw from it before they start. Each of them should ask `lm` before it
    waits for anything else, or its seeds hang on which gets ahead.

    `pairs` raises SampleError for a sample it cannot use (quarantine) and NoPair where it finds nothing to prefer. A
    method that makes several pairs of a sample yields a NoPair for each one that it drops; they are counted by reason.
    """

    def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair | NoPair]: ...


@runtime_checkable
class SurveyMethod(Protocol):
    """A method that looks at the whole set first: `survey` each sample, `learn` from all rows, then make pairs.

    `pairs` gets the sample's own survey row (a JSON value) and what `learn` returned.
    """

    async def survey(self, sample: Sample, lm: SampleLM, rng: random.Random) -> Row: ...

    def learn(self, surveys: Iterable[Row]) -> Any: ...

    def pairs(
        self, sample: Sample, lm: SampleLM, rng: random.Random, survey: Row, known: Any
    ) -> AsyncIterator[Pair | NoPair]: ...


@runtime_checkable
class SelectingMethod(Protocol):
    """A method with a last word on the whole table of pairs, after all of them exist."""

    def select(self, rows: list[PairRow]) -> list[PairRow]: ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method: a key `method.<name>` of the recipe."""

    name: str
    type: str
    default: Any
    doc: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What `mmalign list` shows of a method."""

    name: str
    media: tuple[MediaKind, ...]
    paper: str
    summary: str
    parameters: tuple[Parameter, ...]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def method(
    name: str, *, media: MediaKind | tuple[MediaKind, ...] = "image", paper: str = "", gives: str | tuple[str, ...] = ()
) -> Callable[[C], C]:
    """Make a class a method known by `name`: a frozen dataclass with keyword-only parameters, unless it is one already.

    `media` is the kind, or the kinds, of media that it takes; "text" lets samples without any in. `gives` names what
    its pairs can hold beyond two texts, as objectives name it in their needs: "value:gap", "side:answers". Raises
    TypeError for a class without `pairs`, for a parameter that has no default, and for a kind that does not exist.
    """
    kinds = (media,) if isinstance(media, str) else tuple(media)
    given = (gives,) if isinstance(gives, str) else tuple(gives)

    def register(cls: C) -> C:
        made: Any = cls
        if "__dataclass_fields__" not in vars(cls):
            dataclass(frozen=True, kw_only=True)(cls)  # the same class, changed in place
        if not callable(getattr(cls, "pairs", None)):
            raise TypeError(f"method {name!r}: class {cls.__name__} has no `pairs`")
        bare = [f.name for f in fields(made) if f.default is MISSING and f.default_factory is MISSING]
        if bare:
            raise TypeError(f"method {name!r}: parameter {bare[0]} has no default")
        if not kinds or not set(kinds) <= set(get_args(MediaKind)):
            raise TypeError(f"method {name!r}: media {media!r}; it must be one or more of {get_args(MediaKind)}")
        made.method_name, made.method_media, made.method_paper, made.method_gives = name, kinds, paper, given
        return cls

    return register


def refuse_media(method: object, media: Sequence[MediaRef]) -> None:
    """Raise SampleError, one line, where a method does not take media of such a kind, or no sample without any."""
    cls: Any = type(method)
    taken = " and ".join(f"{kind}s" if kind != "text" else kind for kind in cls.method_media)
    if not media and "text" not in cls.method_media:
        raise SampleError(f"the sample has no media; method {cls.method_name} takes {taken} only")
    for ref in media:
        if ref.kind not in cls.method_media:
            what = {"image": "a picture", "video": "a clip"}[ref.kind]
            raise SampleError(f"{ref.path} is {what}; method {cls.method_name} takes {taken} only")


def check_least(method: object, **least: float) -> None:
    """Raise ValueError, with key and value, where a parameter is no number from its least value on."""
    for name, value in least.items():
        given = getattr(method, name)
        if not given >= value:  # nor is NaN
            raise ValueError(f"{name}: {given} is too small; use {value} or more")


def check_filled(method: object, *names: str) -> None:
    """Raise ValueError where a parameter that holds several values holds none."""
    for name in names:
        if not getattr(method, name):
            raise ValueError(f"{name}: must not be empty")


def method_names() -> list[str]:
    """The names of the methods in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_method(name: str) -> type:
    """The class of a method: by module name, as `path/to/file.py:Class` or as `package.module:Class`.

    Raises RecipeError, with the nearest known name, where there is none.
    """
    place, colon, wanted = name.rpartition(":")
    if colon:
        return _class_in(_own_module(place), wanted, name)
    names = method_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise RecipeError(f"method.name: {name!r} is unknown, did you mean {near[0]}? Own ones: file.py:Class")
    return _class_in(importlib.import_module(f"{__name__}.{name}"), None, name)


def describe(cls: type) -> MethodInfo:
    """Name, media, paper, summary line and parameters of a method class; parameter texts come from its Args section."""
    text = inspect.getdoc(cls) or ""
    texts = {
        found[1]: " ".join(found[2].split())
        for found in re.finditer(r"^    (\w+): (.*(?:\n {5,}.*)*)", text.partition("Args:\n")[2], re.MULTILINE)
    }
    hints = get_type_hints(cls)
    parameters = tuple(
        Parameter(
            field.name,
            inspect.formatannotation(hints[field.name]),
            field.default if field.default_factory is MISSING else field.default_factory(),
            texts.get(field.name, ""),
        )
        for field in fields(cls)
    )
    info: Any = cls
    summary = " ".join(text.partition("\n\n")[0].split())
    return MethodInfo(info.method_name, info.method_media, info.method_paper, summary, parameters)


def list_methods() -> list[MethodInfo]:
    """All methods of this package, by name."""
    return [describe(find_method(name)) for name in method_names()]


def _own_module(place: str) -> ModuleType:
    try:
        return module_at(place)
    except LookupError as error:
        raise RecipeError(f"method.name: {error.args[0]}") from error.__cause__


def _class_in(module: ModuleType, wanted: str | None, name: str) -> type:
    """The method class of a module with the wanted class name, or the only one that is defined there."""
    classes = {
        key: value for key, value in vars(module).items() if isinstance(value, type) and "method_name" in vars(value)
    }
    own = [value for value in classes.values() if value.__module__ == module.__name__]
    if wanted is None and len(own) == 1:
        return own[0]
    if wanted in classes:
        return classes[wanted]
    known = ", ".join(sorted(classes)) or "none"
    raise RecipeError(f"method.name: {name!r}: no class under @method of that name there; it holds {known}")
