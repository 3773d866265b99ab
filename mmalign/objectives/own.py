"""Objectives of a user's own: a class in a file, or in an installed package."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mmalign.objectives.types import Objective


def load_objective(name: str) -> type[Objective]:
    """The class that `path/to/file.py:Class` or `package.module:Class` names.

    Raises LookupError, one line, when there is no such place or class, or the class is no objective.
    """
    place, _, wanted = name.rpartition(":")
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    found: Any = vars(module).get(wanted)
    if not inspect.isclass(found):
        raise LookupError(f"{name!r}: there is no class {wanted!r} there")
    if not dataclasses.is_dataclass(found):
        raise LookupError(f"{name!r}: the class is no dataclass; its fields are what a recipe sets")
    absent = [part for part in ("name", "needs") if not hasattr(found, part)]
    if "__call__" not in dir(found) or absent:
        raise LookupError(
            f"{name!r}: the class has no {', '.join(absent) or '__call__'}; see mmalign.objectives.Objective"
        )
    return cast("type[Objective]", found)


def _module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:  # a user's module may fail in any way
        raise LookupError(f"{place!r}: {error}; give package.module:Class or file.py:Class") from None


def _file(path: Path) -> ModuleType:
    """Run a user's file as a module of its own; a second call gives the same module while the file is unchanged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LookupError(f"{path}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()[:16]
    name = f"mmalign_objective_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LookupError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise LookupError(f"{path}: {type(error).__name__}: {error}") from error
    return module
