"""What every worker of a run is told: the method, the seeds, and where media lie. It is the same in all processes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.engine.work import AnyMethod, Worker, method_name
from mmalign.errors import MediaError, StoreError
from mmalign.lm.protocol import LM
from mmalign.media.read import MediaLimits, open_media
from mmalign.media.video import interrupt_decoding
from mmalign.types import Sample, SampleRow

#: Threads of a worker that open media; decoding releases the interpreter, so a few keep many samples supplied.
NUM_OPENERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Task:
    """The work of one round.

    Args:
        method: Makes the pairs of one sample.
        seed: The run's seed.
        round: Number of the round.
        data_root: The folder that media paths start from; absolute, for it is read by processes that run elsewhere.
        limits: What pictures and clips may be, and which frames of a clip are taken.
    """

    method: AnyMethod
    seed: int
    round: int
    data_root: Path
    limits: MediaLimits

    @classmethod
    def of(cls, method: AnyMethod, seed: int, round: int, data_root: Path, limits: MediaLimits) -> Task:
        return cls(method, seed, round, data_root.absolute(), limits)

    def maker(self) -> dict[str, Any]:
        """What outcomes hang on beside the model, as plain values: a journal is gone on with only by the same maker."""
        return {
            "method": method_name(self.method),
            "parameters": _parameters(self.method),
            "source": _source_digest(self.method),
            "seed": self.seed,
            "round": self.round,
            "limits": _settled(self.limits),
        }

    @contextmanager
    def worker(self, lm: LM) -> Iterator[Worker]:
        """A worker in this process, with its threads."""
        with openers() as pool:
            yield Worker(self.method, lm, self.seed, self.round, self.open, pool)

    def open(self, row: SampleRow) -> Sample:
        """Open a row's media. Raises MediaError, and StoreError where the whole data folder is out of sight."""
        try:
            return open_media(row, self.data_root, self.limits)
        except MediaError:
            if not self.data_root.is_dir():
                raise StoreError(_unseen(self.data_root)) from None
            raise

    def landmarks(self) -> list[str]:
        """Some names in the data folder, by which another machine can tell that it sees the same one."""
        try:
            with os.scandir(self.data_root) as entries:
                return [entry.name for entry, _ in zip(entries, range(3), strict=False)]
        except OSError:
            return []  # there are rows without media, too; where a row has some, `open` tells

    def look_for(self, landmarks: list[str]) -> None:
        """Raise StoreError where the data folder holds none of these names; some may have been removed meanwhile."""
        if landmarks and not any((self.data_root / name).exists() for name in landmarks):
            raise StoreError(_unseen(self.data_root))


def _unseen(root: Path) -> str:
    return (
        f"{root}: {socket.gethostname()} does not see this data folder, or not what is in it; "
        "it must be there under the same path on every machine"
    )


@contextmanager
def openers() -> Iterator[ThreadPoolExecutor]:
    """Threads that open media. When the run breaks off, nobody waits for what they are decoding."""
    pool = ThreadPoolExecutor(NUM_OPENERS, "media")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        interrupt_decoding()
        raise
    finally:
        pool.shutdown()


def _settled(limits: MediaLimits) -> dict[str, Any]:
    """The limits that pairs hang on; how long a decoder may take is a matter of the machine."""
    settled = dataclasses.asdict(limits)
    for kind in ("picture", "clip"):
        del settled[kind]["decode_seconds"]
    return settled


def _source_digest(method: AnyMethod) -> str:
    """SHA-256 of the file of a user's method, which changes while it is worked on; "" for the package's own."""
    module = type(method).__module__
    if module.startswith("mmalign."):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def _parameters(method: AnyMethod) -> dict[str, str]:
    cls: Any = type(method)
    return {field.name: _stable(getattr(method, field.name)) for field in dataclasses.fields(cls)}


def _stable(value: Any) -> str:
    # Functions and plain objects show their address, which differs from start to start.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
