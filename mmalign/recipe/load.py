"""Read a recipe file, apply flags, and refuse what it does not know.

jsonargparse checks types and fills in defaults; this module finds the classes that `method.name` and `objective.name`
stand for, and turns every mistake into one line with file, key, value and remedy. Objectives need torch, which takes
seconds to load; what can be refused without them is refused before.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from mmalign.errors import RecipeError
from mmalign.lm.spec import ModelSpec, ServerSpec
from mmalign.methods import find_method
from mmalign.recipe.schema import DataConfig, EvaluateConfig, GenerateConfig, Given, Recipe
from mmalign.recipe.yamltext import read_yaml
from mmalign.train.config import TrainConfig

SECTIONS: Mapping[str, type] = {
    "model": ModelSpec,
    "server": ServerSpec,
    "data": DataConfig,
    "generate": GenerateConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
SOURCES = ("images", "videos", "samples", "scenes", "clips", "pairs")
_GROUPS = ("method", "objective")


def load_recipe(path: Path, flags: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `flags` ("--train.epochs", "2", ...) on top.

    Raises RecipeError, one line, for a file that cannot be read, an unknown key (with the nearest known one) or a
    value of the wrong type.
    """
    values = _read(path)
    given = list(_flags(flags))
    has_pairs = _has_pairs(values, given)
    method = Given if has_pairs else find_method(_name(values, given, "method", path))
    if has_pairs:
        _refuse_method(values, given, path)
    wanted = _name(values, given, "objective", path)
    in_sections = [key for name, section in SECTIONS.items() for key in _fields(section, f"{name}.")]
    keys = [(key, str(path)) for key in _keys(values, in_sections)] + [(key, "command line") for key, _ in given]
    for key, where in keys:
        if key.partition(".")[0] in SECTIONS:
            _refuse_unknown(key, in_sections, where)

    from mmalign.objectives import find_objective

    try:
        objective = find_objective(wanted)
    except LookupError as error:
        raise RecipeError(f"objective.name: {error.args[0]}") from None
    parser = recipe_parser(method, objective)
    known = ["seed", "output", "engine"]
    for group, made in (("method", method), ("objective", objective)):
        known += [f"{group}.name", *_fields(made, f"{group}.")]
    known += in_sections
    for key in _keys(values, known):
        _refuse_unknown(key, known, str(path))
    for key, _ in given:
        _refuse_unknown(key, known, "command line")
    _choose_source(values, given)
    for key, value in given:
        _set(values, key, value)
    if isinstance(values.setdefault("train", {}), dict):
        values["train"].setdefault("seed", values.get("seed", 0))  # one seed for all, unless told otherwise
    try:
        config = parser.parse_object(values)
    except ArgumentError as error:
        text = _one_line(error)
        flagged = any(f"{key}:" in text for key, _ in given)
        raise RecipeError(f"{'command line' if flagged else path}: {text}") from None
    return _build(config, method, objective)


def recipe_parser(method: type, objective: type) -> ArgumentParser:
    """The parser of all keys of a recipe with this method and this objective; its help is the list of keys."""
    parser = ArgumentParser(prog="mmalign run RECIPE", exit_on_error=False, add_help=True)
    parser.add_argument("--seed", type=int, default=0, help="Every random choice of the run follows from it.")
    parser.add_argument("--output", type=Path, default=Path("runs/latest"), help="The run directory.")
    engine = "Where pairs are made: on this machine, or on a Ray cluster."
    parser.add_argument("--engine", type=Literal["local", "ray"], default="local", help=engine)
    parser.add_argument(
        "--method.name", type=str, required=True, help="A method, file.py:Class or package.module:Class."
    )
    parser.add_argument("--objective.name", type=str, required=True, help="What training minimises.")
    parser.add_class_arguments(method, "method")
    parser.add_class_arguments(objective, "objective")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    return parser


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `method:`, this file holds {values!r:.60}")
    for name in (*SECTIONS, *_GROUPS):
        if name in values and not isinstance(values[name], dict):
            raise RecipeError(f"{path}: {name}: must be a mapping of keys, got {values[name]!r:.60}")
    return values


def _flags(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of each flag; a value that follows as a word of its own is paired with it."""
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"command line: {word!r} is no flag; keys are given as --section.key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise RecipeError(f"command line: --{key}: the value is missing")
            value = words.pop(0)
        yield key, value


def _name(values: Mapping[str, Any], given: Sequence[tuple[str, str]], group: str, path: Path) -> str:
    named = [value for key, value in given if key == f"{group}.name"]
    name = named[-1] if named else values.get(group, {}).get("name")
    if not isinstance(name, str):
        raise RecipeError(f"{path}: {group}.name: missing; `mmalign list` shows what there is")
    return name


def _fields(kind: type, prefix: str) -> Iterator[str]:
    """Dotted names of a dataclass's fields; those of nested dataclasses follow the field that holds them."""
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            yield f"{prefix}{field.name}"
            for inner in (types[field.name], *get_args(types[field.name])):
                if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                    yield from _fields(inner, f"{prefix}{field.name}.")


def _keys(values: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a file, down to those that hold no keys of the recipe."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and any(name.startswith(f"{dotted}.") for name in known):
            yield from _keys(value, known, f"{dotted}.")
        else:
            yield dotted


def _refuse_unknown(key: str, known: Sequence[str], where: str) -> None:
    if key in known:
        return
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)
    raise RecipeError(f"{where}: {key}: unknown key, did you mean {near[0]}?")


def _has_pairs(values: Mapping[str, Any], given: Sequence[tuple[str, str]]) -> bool:
    """Whether the pairs are there already; a source given as a flag counts more than those in the file."""
    flagged = [key for key, _ in given if key in {f"data.{name}" for name in SOURCES}]
    return "data.pairs" in flagged if flagged else values.get("data", {}).get("pairs") is not None


def _refuse_method(values: dict[str, Any], given: Sequence[tuple[str, str]], path: Path) -> None:
    """A method beside pairs that are there would do nothing; that of a file gives way to pairs named by a flag."""
    stand_in, flags = {"name": Given.name}, [key for key, _ in given]
    in_file = "data.pairs" not in flags and values.get("method", stand_in) != stand_in
    if in_file or any(key.startswith("method.") for key in flags):
        raise RecipeError(f"{path}: data.pairs: the pairs are there already; take out the method, or data.pairs")
    values["method"] = stand_in


def _choose_source(values: dict[str, Any], given: Sequence[tuple[str, str]]) -> None:
    """A source given as a flag takes the place of the one in the file."""
    flagged = [name for name in SOURCES if any(key == f"data.{name}" for key, _ in given)]
    if len(flagged) > 1:
        raise RecipeError(f"command line: give one of {', '.join(f'--data.{name}' for name in flagged)}, not both")
    if flagged:
        values["data"] = {key: value for key, value in values.get("data", {}).items() if key not in SOURCES}


def _set(values: dict[str, Any], key: str, value: str) -> None:
    """Put a flag's word at its dotted key; the parser reads it as the type of that key."""
    *path, last = key.split(".")
    for name in path:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


#: What a user calls the types of values.
_TYPES = {"bool": "true or false", "dict": "a mapping", "float": "a number", "int": "a whole number", "tuple": "a list"}


def _one_line(error: ArgumentError) -> str:
    text = " ".join(str(error).split())
    if "Does not validate against any of the Union" in text:
        key, value = text.partition(":")[0], text.rpartition("Given value: ")[2]
        kind = re.search(r"Subtypes: \[(<class '(?:bool|float|int)'>), <class 'NoneType'>\]", text)
        text = f"{key}: wrong value {value}" if kind is None else f"{key}: expected a {kind[1]}. Got value: {value}"
    text = text.replace("a typing.Literal[", "one of [")
    for name, told in _TYPES.items():
        text = text.replace(f"a <class '{name}'>", told)
    return text.replace('Parser key "', "").replace('": Expected', ": expected").replace('":', ":")[:300]


def _build(config: Namespace, method: type, objective: type) -> Recipe:
    data = [("data", key) for key in ("images", "videos", "samples", "pairs", "media_root")]
    for place, key in (*data, ("evaluate", "labels")):
        path = config[place][key]
        try:
            config[place][key] = None if path is None else path.resolve()  # a run may be gone on with from elsewhere
        except ValueError as error:
            raise RecipeError(f"{place}.{key}: {str(path)!r:.80} is no path ({error})") from None
    values = config.as_dict()
    resolved = yaml.safe_load(yaml.safe_dump(_plain(values)))
    built: dict[str, Any] = {key: values[key] for key in ("seed", "output", "engine")} | {"resolved": resolved}
    for group, made in (("method", method), ("objective", objective)):
        parameters = {key: value for key, value in values[group].items() if key != "name"}
        _refuse_nulls(made, parameters, group)
        try:
            built[group] = made(**parameters)
        except ValueError as error:
            raise RecipeError(f"{group}.{error}") from None
    for name, section in SECTIONS.items():
        _refuse_nulls(section, values[name], name)
        try:
            built[name] = _section(section, config[name])
        except ValueError as error:
            raise RecipeError(f"{name}.{_reason(error)}") from None
    recipe = Recipe(**built)
    _refuse_unread(recipe)
    if recipe.data.pairs is None:  # else the pairs themselves are looked at before training
        _refuse_unmet(recipe)
    chosen = [name for name in SOURCES if getattr(recipe.data, name)]
    if len(chosen) > 1:
        raise RecipeError(f"data: give one of {', '.join(chosen)}, not all of them")
    return recipe


def _refuse_nulls(kind: type, values: Mapping[str, Any], where: str) -> None:
    """The parser takes null for a value of any type."""
    types = get_type_hints(kind)
    for key, value in values.items():
        kinds = (types.get(key), *get_args(types.get(key)))
        if value is None and key in types and not {Any, NoneType} & set(kinds):
            raise RecipeError(f"{where}.{key}: got null; leave the key out for its default")
        for inner in kinds if isinstance(value, Mapping) else ():
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                _refuse_nulls(inner, value, f"{where}.{key}")


def _refuse_unmet(recipe: Recipe) -> None:
    """What the method's pairs can never give is refused before any is made."""
    from mmalign.objectives import refuse_unmet
    from mmalign.train.data.needs import promised, refuse_arrangement

    try:
        refuse_unmet(recipe.objective, promised(recipe.method, recipe.train))
    except ValueError as error:
        raise RecipeError(f"objective: {error}") from None
    try:
        refuse_arrangement(recipe.method, recipe.train)
    except ValueError as error:
        raise RecipeError(f"train.arrange: {error}") from None


def _refuse_unread(recipe: Recipe) -> None:
    """A model that the objective does not read, mistyped or of another objective, would be left out in silence."""
    if not recipe.train.models:
        return
    from mmalign.train.data.given import logit_sources, token_models

    scores = token_models(recipe.objective)
    read = sorted({*logit_sources(recipe.objective), *scores, *(f"{name}_reference" for name in scores)})
    for name in recipe.train.models:
        if name not in read:
            told = f"it reads {', '.join(read)}" if read else "it reads no other model"
            kind = recipe.resolved["objective"]["name"]
            raise RecipeError(f"train.models.{name}: objective {kind} does not read it; {told}")


def _reason(error: ValueError) -> str:
    """What a dataclass said, also when it is one of several kinds that a key may have."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line.removeprefix("- ") for line in lines if line.startswith("- ")), lines[0])


def _section(section: type, values: Namespace) -> Any:
    """An instance of a nested dataclass from parsed values."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(section, "it")
    return parser.instantiate(Namespace(it=values)).it


def _plain(value: Any) -> Any:
    """Values that YAML writes as they are read."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value
