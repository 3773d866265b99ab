"""A user's own code by name: a file that is run as a module, or an installed module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PREFIX = "mmalign_own_"


def module_at(place: str) -> ModuleType:
    """The module that `path/to/file.py` or `package.module` names; the same one while a file is unchanged.

    Raises LookupError, one line, when there is none or it fails while it is run.
    """
    return _file(Path(place)) if place.endswith(".py") else _installed(place)


def file_of(module: str) -> Path | None:
    """The file that a module of a user's own code was run from; None for a module that can be imported by its name."""
    if not module.startswith(_PREFIX):
        return None
    return Path(str(sys.modules[module].__file__)).absolute()


def _installed(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:  # a user's module may fail in any way
        raise LookupError(f"{place!r}: {error}; give package.module:Class or file.py:Class") from None


def _file(path: Path) -> ModuleType:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LookupError(f"{path}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()[:16]
    name = f"{_PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LookupError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may fail in any way
        del sys.modules[name]
        raise LookupError(f"{path}: {type(error).__name__}: {error}") from error
    return module
