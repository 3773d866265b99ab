"""Files and folders that appear whole or not at all: written under another name, flushed to disk, then renamed.

Names of unfinished things begin with `.partial-`; nothing reads them. What was killed in writing leaves at most one of
them for each name, and the next attempt puts it out of the way.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mmalign.errors import StoreError

PREFIX = ".partial-"
#: Of renameat2 (Linux) and renamex_np (macOS): let names change places; a path starts from the current folder.
_EXCHANGE, _HERE = 2, -100


@contextmanager
def writing_bytes(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content is the file `path`, in place of what was there, when the block ends well.

    Two processes that write the same file at once do so one after the other. Raises StoreError.
    """
    partial = path.with_name(f"{PREFIX}{path.name}")
    with explained(path), os.fdopen(_claimed(partial), "wb") as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """`writing_bytes` for UTF-8 text; lines end in a line feed on every system."""
    with writing_bytes(path) as stream, explained(path):
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n", write_through=True)
        try:
            yield text
            text.flush()
        finally:
            with suppress(OSError):  # of a flush that has failed before
                text.detach()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all. Raises StoreError."""
    with writing(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. Raises StoreError."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it becomes `path`, in place of what was there, when the block ends well.

    A folder takes the place of another at once; on file systems where two names cannot change places (NFS) there is
    none for an instant. For what writes to a path of its own, by one process at a time. Raises StoreError, also where
    safetensors and torch have errors of their own for a disk that fails.
    """
    partial = path.with_name(f"{PREFIX}{path.name}")
    with explained(path):
        for left in (partial, _doomed(path)):
            discard(left)
        try:
            yield partial
            for part in [*partial.rglob("*"), partial]:
                sync_folder(part) if part.is_dir() else _flush(part)
            replaced = _put(partial, path)
            sync_folder(path.parent)  # before what was there is gone
            if replaced is not None:
                discard(replaced)
        except BaseException as error:
            discard(partial)
            if (cause := _of_the_system(error)) is not None:
                raise cause from error
            raise


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there, so that no part of it is ever seen under its name."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.startswith(PREFIX) else _doomed(path)
        if doomed != path:
            discard(doomed)
            path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _doomed(path: Path) -> Path:
    return path.with_name(f"{PREFIX}old-{path.name}")


def make_parent(path: Path) -> None:
    """Create the folder that `path` is to lie in. Raises StoreError."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def sweep(folder: Path) -> None:
    """Clear away what interrupted writing left in `folder`."""
    for path in folder.glob(f"{PREFIX}*"):
        discard(path)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut; file systems without it are left alone."""
    try:
        _flush(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a StoreError of one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {reason_of(error)}") from None


def reason_of(error: OSError) -> str:
    """Why something cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space and run the same command again, what is done is kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "make the folder writable or name another output"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "a file stands where a folder has to be; move it away or name another output"
    else:
        remedy = "check the disk or name another output"
    return f"cannot be written ({(error.strerror or str(error)).lower()}); {remedy}"


def _claimed(partial: Path) -> int:
    """The unfinished file, opened and emptied, held by this process until it is closed."""
    while True:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                # Whoever held it until now may have finished it: then it has another name.
                if os.path.samestat(os.fstat(handle), partial.stat()):
                    os.ftruncate(handle, 0)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _put(new: Path, path: Path) -> Path | None:
    """Give `new` the name `path`; the name that a folder which had it has now."""
    if not path.is_dir():
        new.replace(path)
        return None
    if _exchanged(new, path):
        return new
    old = _doomed(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    return old


def _exchanged(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    sys.audit("os.rename", str(one), str(other), -1, -1)  # as Python's own renaming does
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)
    return hasattr(libc, "renamex_np") and libc.renamex_np(*names, _EXCHANGE) == 0


def _of_the_system(error: BaseException) -> OSError | None:
    """The system's error behind that of safetensors ("os error 28"), or of torch, raised while the other is handled."""
    if (found := re.search(r"\(os error (\d+)\)", str(error))) is not None:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    cause = error.__context__ if isinstance(error, RuntimeError) else error
    return cause if isinstance(cause, OSError) else None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
