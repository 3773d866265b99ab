"""What a run was made with: Python, platform, package versions and the git state. Loads none of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

#: Packages that results can hang on.
PACKAGES = (
    "mmalign",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "safetensors",
    "trl",
    "numpy",
    "pillow",
    "pyarrow",
    "av",
    "ray",
)


def environment() -> dict[str, Any]:
    """Versions and places, as plain values; packages that are not installed are left out."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "packages": _versions(),
        "git": _git(),
    }


def version_of(package: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    return {name: version for name in PACKAGES if (version := version_of(name)) is not None}


def _git() -> dict[str, Any] | None:
    commit = _ask_git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(_ask_git("status", "--porcelain", "--untracked-files=no"))}


def _ask_git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "--no-optional-locks", *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("utf-8", "replace")  # names of files may be in any encoding
