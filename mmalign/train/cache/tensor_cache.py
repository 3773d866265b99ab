"""Named tensors by key, in memory and on disk: bounded, shared by several processes, and never trusted.

A file is written under a name of its own and renamed, so it appears whole; what was cut short or damaged since is
known by a checksum and counts as absent. When the folder is full, files leave that were not used for longest.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mmalign.atomic import PREFIX
from mmalign.errors import TrainError

log = logging.getLogger("mmalign.train")

#: Seconds after which an unfinished file is one that a killed process left.
_ABANDONED = 3600.0
#: Share of the limit that a process writes before it looks again at what others have written.
_LOOK_AGAIN = 1 / 32
#: Name of the checksum among the tensors of a file.
_SUM = "crc32"


@dataclass
class TensorCache:
    """Keeps tensors on the CPU under keys that are file names.

    Memory takes what comes first until `memory` bytes are full and keeps it: training goes round over its pairs, where
    leaving by age would throw out each just before it is needed again. The folder, where there is one, holds about
    `limit` bytes; each process can go over by a thirty-second part before it sees what others wrote.

    Raises TrainError for a folder that cannot be written to. Later trouble with it is told once and costs only time.
    """

    folder: Path | None = None
    limit: int = 0
    memory: int = 0
    _held: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _held_bytes: int = field(default=0, init=False, repr=False)
    #: Bytes in the folder when it was last looked at, and written since.
    _found_bytes: int = field(default=0, init=False, repr=False)
    _written_bytes: int = field(default=0, init=False, repr=False)
    _is_broken: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            self._make_room(0)
        except OSError as error:
            raise TrainError(f"train.feature_cache {str(self.folder)!r} cannot be written to: {error}") from error

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, or None."""
        if (held := self._held.get(key)) is not None or self.folder is None:
            return held
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # who reads a file may have no right to say that it was used
            os.utime(path)
        tensors = _read(data)
        if tensors is not None:
            self._hold(key, tensors)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor], *, lasts: bool = True) -> None:
        """Keep tensors, beyond this process only if `lasts`."""
        # A view would keep alive what it is a view of.
        kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        self._hold(key, kept)
        if self.folder is None or self._is_broken or not lasts:
            return
        data = save({**kept, _SUM: torch.tensor(_checksum(kept))})
        if len(data) > self.limit:
            return
        try:
            self._write(self._path(key), data)
        except OSError as error:
            self._is_broken = True
            log.warning("train.feature_cache: nothing more is written: %s", error)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _hold(self, key: str, tensors: dict[str, Tensor]) -> None:
        size = sum(value.nbytes for value in tensors.values())
        if key not in self._held and self._held_bytes + size <= self.memory:
            self._held[key] = tensors
            self._held_bytes += size

    def _write(self, path: Path, data: bytes) -> None:
        over = self._found_bytes + self._written_bytes + len(data) > self.limit
        if over or self._written_bytes > self.limit * _LOOK_AGAIN:
            self._make_room(len(data))
        partial = path.with_name(f"{PREFIX}{uuid.uuid4().hex}")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._written_bytes += len(data)

    def _make_room(self, more: int) -> None:
        """Look at the folder; if it has no room for `more` bytes, remove files until a tenth of it is free."""
        assert self.folder is not None
        files = []
        for path in (*self.folder.glob("*.safetensors"), *self.folder.glob(f"{PREFIX}*")):
            with suppress(FileNotFoundError):  # another process was faster
                found = path.stat()
                if not path.name.startswith(PREFIX):
                    files.append((found.st_mtime_ns, found.st_size, path))
                elif time.time() - found.st_mtime > _ABANDONED:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        if total + more > self.limit:
            room = min(0.9 * self.limit, self.limit - more)
            for _, size, path in sorted(files):
                if total <= room:
                    break
                path.unlink(missing_ok=True)
                total -= size
        self._found_bytes, self._written_bytes = total, 0


def _read(data: bytes) -> dict[str, Tensor] | None:
    """The tensors of a whole, undamaged file, or None."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    wanted = tensors.pop(_SUM, None)
    return None if wanted is None or int(wanted) != _checksum(tensors) else tensors


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return value
