"""`mmalign list`: methods, objectives and corruptions with their parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


def main(what: str | None) -> int:
    """Print one list, or all of them."""
    console = Console(soft_wrap=False)
    makers: dict[str, Callable[[], RenderableType]] = {
        "methods": _methods,
        "objectives": _objectives,
        "corruptions": _corruptions,
    }
    for name, make in makers.items():
        if what in (None, name):
            console.print(make())
    return 0


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _parameters(kind: type) -> str:
    shown = []
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown.append(f"{field.name}={_short(default)}")
    return "\n".join(shown)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _objectives() -> RenderableType:
    """Each family under its title; of each objective the formula, the parameters, what it needs, where it is from."""
    from mmalign.objectives import FAMILIES, LEGEND, OBJECTIVES, describe_objective

    parts: list[RenderableType] = [Text("objectives", style="italic"), Text(LEGEND, style="dim"), ""]
    for title, names in FAMILIES.items():
        grid = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", padding=(0, 1))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for name in names:
            info = describe_objective(OBJECTIVES[name])
            shown = ", ".join(f"{parameter}={_short(default)}" for parameter, default in info.parameters)
            lines = [Text(info.formula), *([Text(shown, style="cyan")] if shown else [])]
            lines += [Text(f"needs {', '.join(info.needs)}"), Text(info.source, style="dim")]
            grid.add_row(name, Group(*lines))
        parts += [grid, ""]
    return Group(*parts)


def _methods() -> Table:
    from mmalign.methods import list_methods

    table = _table("methods", "name", "media", "what it does", "parameters")
    for info in list_methods():
        shown = "\n".join(f"{parameter.name}={_short(parameter.default)}" for parameter in info.parameters)
        table.add_row(info.name, ", ".join(info.media), f"{info.summary}\n{info.paper}", shown)
    return table


def _corruptions() -> Table:
    from mmalign.corrupt import corruption_names, find_corruption

    table = _table("corruptions", "name", "media", "what it does", "ranges")
    pictures = corruption_names("image")
    for name in corruption_names("video"):
        kind = find_corruption(name)
        media = "image, video" if name in pictures else "video"
        table.add_row(name, media, (kind.__doc__ or "").strip().splitlines()[0], _parameters(kind))
    return table
