"""Files and folders that appear whole or not at all: written under another name, flushed to disk, then renamed.

Names of unfinished things begin with `.partial-`; nothing reads them, and `sweep` clears them away.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PREFIX = ".partial-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it becomes `path`, in place of what was there, when the block ends well.

    The unfinished name is one and the same for every attempt, so an attempt that was killed leaves at most one behind.
    Raises OSError for what cannot be written, also where safetensors has an error of its own for it (a full disk).
    """
    partial = path.with_name(f"{PREFIX}{path.name}")
    discard(partial)
    try:
        yield partial
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    for file in [partial] if partial.is_file() else sorted(p for p in partial.rglob("*") if p.is_file()):
        _flush(file)
    if path.is_dir():
        discard(path)
    partial.replace(path)
    _flush(path.parent)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there, so that no part of it is ever seen under its name."""
    if path.is_dir():
        doomed = path if path.name.startswith(PREFIX) else path.with_name(f"{PREFIX}old-{path.name}")
        if doomed != path:
            discard(doomed)
            path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Clear away what interrupted writing left in `folder`."""
    for path in folder.glob(f"{PREFIX}*"):
        discard(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
