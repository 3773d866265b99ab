"""What a record says of the machine that it was made on is kept from cards and uploads: paths become names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

#: A whole value that is an absolute path, on any system.
_ABSOLUTE = re.compile(r"^(?:file://)?(?:/|~/|[A-Za-z]:[\\/]|\\\\)[^\n]*$")
#: A path of two levels or more in running text, after a character that cannot belong to it. An address is no path.
_INSIDE = re.compile(r"(?<![\w.:/\\<~])(?:~?(?:/[\w.@+~-]+){2,}|[A-Za-z]:(?:\\[\w.@+~-]+)+)")
#: A repository of a hub.
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
#: Settings that name machines.
_MACHINES = ("url", "ray_address")


def without_paths(value: Any) -> Any:
    """The same settings, with absolute paths cut to their last name and without the names of machines."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items() if key not in _MACHINES}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return _last(value)
    return without_paths_inside(value)


def without_paths_inside(value: Any) -> Any:
    """The same JSON value with paths in its texts cut to their last name; for words of models and judges."""
    if isinstance(value, Mapping):
        return {key: without_paths_inside(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths_inside(entry) for entry in value]
    return _INSIDE.sub(lambda found: _last(found[0]), value) if isinstance(value, str) else value


def hub_id(name: str) -> str | None:
    """The name of a model if it is one that others can find: a repository of a hub, not a folder of this machine."""
    return name if _HUB_ID.match(name) and not name.startswith(".") and not Path(name).exists() else None


def _last(path: str) -> str:
    windows = "\\" in path or re.match(r"[A-Za-z]:", path)
    return (PureWindowsPath if windows else PurePosixPath)(path).name or "."
