"""Hands out the samples that are still to do, and remembers which of the journalled outcomes are wanted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mmalign.engine.journal import Entry, Journal, Phase, Status
from mmalign.engine.work import fingerprint, storable
from mmalign.errors import DataError
from mmalign.types import SampleRow

#: Runs a function in the thread that owns the journal.
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

#: Rows looked up at once. They are small; media are opened only when a worker takes one.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to work on and, in the second pass of a two-pass method, its own survey row."""

    row: SampleRow
    survey: Any = None


class Feed:
    """The samples of one pass that have no outcome yet.

    Args:
        rows: The samples; read lazily and once.
        journal: Where outcomes are looked up.
        phase: The pass.
        in_thread: Runs a function where the journal may be used.
        retry_until: Quarantined outcomes up to this number are made again.
        surveyed: The second pass of a two-pass method: only samples with a survey row are handed out.
        found: Told the status of each sample that was done before.
    """

    def __init__(
        self,
        rows: Iterable[SampleRow],
        journal: Journal,
        phase: Phase,
        *,
        in_thread: InThread,
        retry_until: int,
        surveyed: bool,
        found: Callable[[Status], None],
    ) -> None:
        self._rows = iter(rows)
        self._journal = journal
        self._phase: Phase = phase
        self._in_thread = in_thread
        self._retry_until = retry_until
        self._surveyed = surveyed
        self._found = found
        self._jobs: deque[Job] = deque()
        self._refilling = asyncio.Lock()
        self._ended = False
        self._num_read = 0
        # One bit per outcome of earlier starts: 125 kB for a million, where a set of ids would take 100 MB.
        self._old = journal.last_seq
        self._wanted = bytearray(self._old // 8 + 1)
        self._open: set[str] = set()

    async def next(self) -> Job | None:
        """The next sample, or None when there are no more. Raises DataError for a sample id that occurs twice."""
        while not self._jobs and not self._ended:
            async with self._refilling:
                if not self._jobs and not self._ended:
                    await self._refill()
        return self._jobs.popleft() if self._jobs else None

    def closed(self, ids: Iterable[str]) -> None:
        """The outcomes of these samples are in the journal."""
        self._open.difference_update(ids)

    def wants(self, seq: int) -> bool:
        """Whether an outcome belongs to one of the samples; the journal may hold samples that left the data."""
        return seq > self._old or bool(self._wanted[seq >> 3] & 1 << (seq & 7))

    async def _refill(self) -> None:
        rows = await self._in_thread(lambda: list(islice(self._rows, CHUNK)))
        self._ended = not rows
        # Before the look-up: an outcome that is written meanwhile is either still open here or found there.
        for row in rows:
            self._num_read += 1
            key = storable(row.id)
            if key in self._open:
                raise self._twice(key)
            self._open.add(key)
        keys = [storable(row.id) for row in rows]
        entries, surveys = await self._in_thread(lambda: self._look_up(keys))
        for key, row in zip(keys, rows, strict=True):
            entry = entries.get(key)
            if entry is not None and self.wants(entry.seq):
                raise self._twice(key)
            if self._surveyed and key not in surveys:
                self._open.discard(key)
            elif entry is not None and self._is_valid(entry, row):
                self._wanted[entry.seq >> 3] |= 1 << (entry.seq & 7)
                self._open.discard(key)
                self._found(entry.status)
            else:
                self._jobs.append(Job(row, surveys.get(key)))

    def _look_up(self, keys: list[str]) -> tuple[dict[str, Entry], dict[str, Any]]:
        entries = self._journal.find(self._phase, keys)
        if not self._surveyed:
            return entries, {}
        surveyed = {key: entry.seq for key, entry in self._journal.find("survey", keys).items()}
        made = self._journal.made(surveyed.values())
        return entries, {key: made[seq] for key, seq in surveyed.items() if seq in made}

    def _is_valid(self, entry: Entry, row: SampleRow) -> bool:
        if entry.status == "quarantined" and entry.seq <= self._retry_until:
            return False
        return entry.fingerprint == fingerprint(row)

    def _twice(self, key: str) -> DataError:
        return DataError(
            f"data: the sample id {key!r} occurs twice (again by row {self._num_read}); give each row its own id"
        )
