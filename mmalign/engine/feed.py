"""Hands out the samples that are still to do, and remembers which of the journalled outcomes are wanted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmalign.chunked import Chunk, chunks_of, digest_of
from mmalign.engine.environment import version_of
from mmalign.engine.journal import STATUSES, Journal, Phase, Status
from mmalign.engine.known import Flags, Known, Numbers, Wants, keys_of
from mmalign.engine.work import fingerprint, storable
from mmalign.errors import DataError
from mmalign.types import SampleRow

#: Runs a function in the thread that owns the journal.
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

QUARANTINED = STATUSES.index("quarantined")
DONE = STATUSES.index("done")


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to work on and, in the second pass of a two-pass method, its own survey row."""

    row: SampleRow
    survey: Any = None


class Feed:
    """The samples of one pass that have no outcome yet.

    Chunks of data that were read by an earlier start are not read again where all their samples are done. Memory does
    not grow with the number of rows; outcomes of earlier starts take 25 bytes each, and as much again to load.

    Args:
        rows: The samples; read lazily and once.
        journal: Where outcomes are looked up.
        phase: The pass.
        in_thread: Runs a function where the journal may be used.
        retry_until: Quarantined outcomes up to this number are made again.
        surveyed: The second pass of a two-pass method: only samples with a survey row are handed out.
        found: Told the status of each sample that was done before.

    Attributes:
        wants: Which outcomes belong to one of the samples.
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
        self.wants = Wants(journal.last_seq)
        self._chunks = chunks_of(rows)
        self._journal = journal
        self._phase: Phase = phase
        self._in_thread = in_thread
        self._retry_until = retry_until
        self._surveyed = surveyed
        self._found = found
        self._jobs: deque[Job] = deque()
        self._refilling = asyncio.Lock()
        self._ended = False
        self._version = (version_of("mmalign") or "").encode()
        self._known: Known | None = None
        self._met = np.zeros(0, np.bool_)
        self._surveys: Known | None = None
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

    async def _refill(self) -> None:
        read: tuple[list[Job], list[int]] | None = await self._in_thread(self._read)
        if read is None:
            self._ended = True
            return
        jobs, done = read
        self._jobs.extend(jobs)
        for status, num in zip(STATUSES, done, strict=True):
            for _ in range(num):
                self._found(status)

    def _read(self) -> tuple[list[Job], list[int]] | None:
        """The samples to do of the next chunk, and how many of the others there are of each status."""
        if self._known is None:  # before this pass wrote anything: nothing has been handed out yet
            self._known = self._journal.known(self._phase)
            self._met = np.zeros(len(self._known.keys), np.bool_)
            self._surveys = self._journal.known("survey") if self._surveyed else None
        chunk = next(self._chunks, None)
        if chunk is None:
            return None
        rows, keys, prints = self._samples(chunk, self._known)
        places = self._known.places(keys)
        self._refuse_met(chunk, keys, places)
        done = places >= 0
        done[done] = self._is_valid(self._known, places[done], prints[done])
        wanted = np.ones(len(keys), np.bool_)
        surveys = None
        if self._surveys is not None:
            surveys = self._surveys.places(keys)
            wanted = (surveys >= 0) & (self._surveys.statuses[surveys] == DONE) if len(self._surveys.keys) else ~wanted
        done &= wanted
        self.wants.mark(self._known.seqs[places[done]])
        counts = np.bincount(self._known.statuses[places[done]], minlength=len(STATUSES)).tolist()
        to_do = np.flatnonzero(wanted & ~done)
        if not len(to_do):
            return [], counts
        rows = rows or _rows_of(chunk)
        self._open_all(chunk, [storable(rows[index].id) for index in to_do])
        if self._surveys is None or surveys is None:
            return [Job(rows[index]) for index in to_do], counts
        seqs = self._surveys.seqs[surveys[to_do]].tolist()
        made = self._journal.made(seqs)
        return [Job(rows[index], made[seq]) for index, seq in zip(to_do, seqs, strict=True)], counts

    def _samples(self, chunk: Chunk, known: Known) -> tuple[list[SampleRow], Numbers, Numbers]:
        """Keys and fingerprints of a chunk's samples, and its rows, which are empty where the chunk was seen before."""
        # What rows are made of a chunk may change with the version.
        digest = None if chunk.digest is None else digest_of(chunk.digest, self._version)
        if digest is not None and (seen := self._journal.seen(digest)) is not None:
            return [], *seen
        rows = _rows_of(chunk)
        keys = keys_of(storable(row.id) for row in rows)
        if digest is not None:
            prints = np.fromiter(map(fingerprint, rows), np.int64)
            self._journal.see(digest, keys, prints)
            return rows, keys, prints
        # Those of new samples are not looked at.
        pairs = zip(rows, known.places(keys) >= 0, strict=True)
        return rows, keys, np.fromiter((fingerprint(row) if is_known else 0 for row, is_known in pairs), np.int64)

    def _is_valid(self, known: Known, places: Numbers, prints: Numbers) -> Flags:
        retried = (known.statuses[places] == QUARANTINED) & (known.seqs[places] <= self._retry_until)
        valid: Flags = (known.prints[places] == prints) & ~retried
        return valid

    def _refuse_met(self, chunk: Chunk, keys: Numbers, places: Numbers) -> None:
        """Raises DataError where an id is in the chunk twice, or in it and, with an outcome, in an earlier one."""
        twice = np.ones(len(keys), np.bool_)
        twice[np.unique(keys, return_index=True)[1]] = False
        is_known = places >= 0
        twice[is_known] |= self._met[places[is_known]]
        if twice.any():
            raise _twice(list(chunk.rows())[int(twice.argmax())])
        self._met[places[is_known]] = True

    def _open_all(self, chunk: Chunk, ids: list[str]) -> None:
        """Note samples that are handed out. Raises DataError where one has been before."""
        # The thread that writes the journal runs this: what was handed out is either open still or found there.
        again = self._open.intersection(ids) | self._journal.written_since(self._phase, ids, self.wants.last_seq)
        if again:
            raise _twice(next(pair for pair in chunk.rows() if storable(pair[1].id) in again))
        self._open.update(ids)


def _rows_of(chunk: Chunk) -> list[SampleRow]:
    return [row for _, row in chunk.rows()]


def _twice(numbered: tuple[int, SampleRow]) -> DataError:
    number, row = numbered
    return DataError(
        f"data: the sample id {storable(row.id)!r} occurs twice (again by row {number}); give each row its own id"
    )
