"""Objectives of a user's own: a class in a file, or in an installed package."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, cast

from mmalign.objectives.types import Objective
from mmalign.own_code import module_at


def load_objective(name: str) -> type[Objective]:
    """The class that `path/to/file.py:Class` or `package.module:Class` names.

    Raises LookupError, one line, when there is no such place or class, or the class is no objective.
    """
    place, _, wanted = name.rpartition(":")
    found: Any = vars(module_at(place)).get(wanted)
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
