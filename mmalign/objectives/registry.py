"""Objectives by name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from mmalign.objectives import (
    combined,
    contexts,
    distill,
    dpo,
    free,
    internal,
    lists,
    noisy,
    pairwise,
    policy,
    reward,
    rrpo,
    sft,
    sources,
    squares,
    tokens,
)
from mmalign.objectives.own import load_objective
from mmalign.objectives.types import Need, Objective

_MODULES = (
    dpo,
    rrpo,
    sft,
    pairwise,
    free,
    noisy,
    squares,
    contexts,
    sources,
    tokens,
    distill,
    lists,
    policy,
    internal,
    reward,
    combined,
)


def _defined(module: ModuleType) -> list[type[Objective]]:
    """The objectives that a module defines, in its order."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and isinstance(vars(kind).get("name"), str)
    ]


#: Every objective of the package; parameters are the fields of each class.
OBJECTIVES: Final[dict[str, type[Objective]]] = {kind.name: kind for module in _MODULES for kind in _defined(module)}


#: How formulas are to be read.
LEGEND: Final = (
    "s = log sigmoid, sg = sigmoid, softCE(z, p) = -p s(z) - (1 - p) s(-z); w = chosen, l = rejected; L = sum of token "
    "log-probs, n = number of tokens, NLL = -L / n, lr = L - L of the reference, lrm = lr / n, D = lr_w - lr_l"
)


@dataclass(frozen=True, slots=True)
class ObjectiveInfo:
    """What `mmalign list` shows of an objective; `parameters` are name and default, `needs` those of the defaults."""

    name: str
    summary: str
    formula: str
    source: str
    needs: tuple[Need, ...]
    parameters: tuple[tuple[str, Any], ...]


def find_objective(name: str) -> type[Objective]:
    """The class called `name`: one of `OBJECTIVES`, `path/to/file.py:Class` or `package.module:Class`.

    Raises LookupError, one line, with the nearest name, when there is none.
    """
    if ":" in name:
        return load_objective(name)
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    near = difflib.get_close_matches(name, OBJECTIVES, n=3)
    # Of those equally near the likelier one begins alike: 'dop' is rather 'dpo' than 'osp'.
    best = next((found for found in near if found[0] == name[0]), near[0] if near else None)
    hint = f"did you mean {best!r}?" if best else "`mmalign list objectives` shows them; own ones: file.py:Class"
    raise LookupError(f"no objective is called {name!r}; {hint}")


def describe_objective(kind: type[Objective]) -> ObjectiveInfo:
    """Name, formula, source, needs and parameters of an objective's class."""
    given: Any = kind
    text = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return ObjectiveInfo(
        name=kind.name,
        summary=" ".join(text.split()),
        formula=getattr(kind, "formula", ""),
        source=getattr(kind, "source", ""),
        needs=tuple(sorted(kind().needs)),
        parameters=tuple((field.name, field.default) for field in dataclasses.fields(given) if field.init),
    )
