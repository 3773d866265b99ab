"""What the package imports is what its metadata asks for: an install brings all of it."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
#: Parts of jinja2 and transformers that live in packages of their own, which those two always bring.
BROUGHT = {"markupsafe", "tokenizers"}


def imported() -> Iterator[tuple[str, Path]]:
    """Top packages that the code imports anywhere, at the start or inside of functions."""
    for path in sorted((ROOT / "mmalign").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], path
            elif isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)


def test_every_package_that_is_imported_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name != "dev"]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    asked = {canonicalize_name(Requirement(line).name) for line in lines} | BROUGHT
    providers = packages_distributions()
    found = {name: path for name, path in imported() if name not in sys.stdlib_module_names and name != "mmalign"}
    unasked = {
        f"{name} in {path.relative_to(ROOT)}"
        for name, path in found.items()
        if not {canonicalize_name(provider) for provider in providers.get(name, [name])} & asked
    }
    assert not unasked
