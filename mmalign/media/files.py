"""Files of the data folder: paths that cannot leave it, bounded reads, SHA-256."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from mmalign.errors import MediaError

_ADDRESS = re.compile(r"^(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


def safe_path(root: Path, relative: str) -> Path:
    """The real path of a file that data names, below the data folder `root`; the file need not exist.

    Raises MediaError for addresses of the network, absolute paths, `..`, names that are not UTF-8 and links that lead
    out of the folder. Links that stay inside are followed.
    """
    if not relative.strip():
        raise MediaError("the path of a picture or clip is empty")
    if _ADDRESS.match(relative):
        shown = relative if len(relative) <= 80 else relative[:77] + "..."
        raise MediaError(
            f"{shown}: is an address, and nothing is downloaded; save the file in the data folder, give its path"
        )
    if "\0" in relative:
        raise MediaError(f"{relative!r}: the path holds a NUL character")
    if _not_utf8(relative):
        raise MediaError(f"{relative}: the file name is not UTF-8; rename the file")
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive:
        raise MediaError(f"{relative}: is an absolute path; give paths relative to the data folder {root}")
    if ".." in PurePosixPath(relative).parts:
        raise MediaError(f"{relative}: leaves the data folder by '..'; give a path below {root}")
    top = os.path.realpath(root)
    path = os.path.realpath(root / relative)
    if os.path.commonpath([top, path]) != top:
        raise MediaError(f"{relative}: is a link that leads outside of the data folder {root}; copy the file into it")
    return Path(path)


def readable_name(name: str) -> str:
    r"""A file name that any file format takes: bytes that are not UTF-8 become `\udcNN`, which `safe_path` explains."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _not_utf8(name: str) -> bool:
    return r"\udc" in readable_name(name)


def check_file(path: Path, name: str, max_bytes: int) -> int:
    """The size in bytes of a regular file; `name` stands in messages.

    Raises MediaError when it is no such file, is empty or has more than `max_bytes`.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(f"{name}: no such file") from None
    except OSError as error:
        raise MediaError(f"{name}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        # A pipe would be waited for without end.
        raise MediaError(f"{name}: is not a regular file")
    if status.st_size == 0:
        raise MediaError(f"{name}: is empty (0 bytes)")
    if status.st_size > max_bytes:
        raise MediaError(f"{name}: has {status.st_size} bytes, more than the limit of {max_bytes}")
    return status.st_size


def read_file(path: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; `name` stands in messages. Raises MediaError."""
    check_file(path, name, max_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{name}: cannot be read ({error.strerror})") from None


def is_text(start: bytes) -> bool:
    """Whether a file that begins with these bytes holds text; a character may be cut off at their end."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter in "\r\n\t\f" for letter in text)


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes stands for another that Git LFS keeps."""
    return start.startswith(b"version https://git-lfs")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal. Raises MediaError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from None
