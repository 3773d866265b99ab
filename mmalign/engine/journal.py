"""The journal of one round: what became of every sample, safe against `kill -9` and power cuts.

One SQLite file, written by the driver only. It uses SQLite's rollback journal (mode TRUNCATE) and full synchronisation:
a transaction that was cut off is rolled back when the file is next opened, on any file system with working locks and
fsync. The write-ahead log would need shared memory, which network file systems do not give, and leaves the data in two
files; writing in batches makes the difference in speed small.

Outcomes are small rows, so that a million of them are read in a second (`known`); what a method made (pairs, survey
rows) lies in a second, append-only table. A third one tells, for chunks of the data that were read before, which
samples they hold, so that a next start need not read them again.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np

from mmalign.engine.known import Known, Numbers, key_of
from mmalign.engine.rundir import differences
from mmalign.errors import StoreError

Phase = Literal["survey", "pairs"]
Status = Literal["done", "empty", "quarantined"]
STATUSES: tuple[Status, ...] = get_args(Status)

_NOTES = "CREATE TABLE IF NOT EXISTS note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_TABLES = """
CREATE TABLE IF NOT EXISTS outcome (
    phase TEXT NOT NULL, sample_id TEXT NOT NULL, key INTEGER NOT NULL, status TEXT NOT NULL, seq INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL, calls INTEGER NOT NULL, stage TEXT NOT NULL, path TEXT NOT NULL,
    reason TEXT NOT NULL, discarded TEXT NOT NULL, PRIMARY KEY (phase, sample_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS made (seq INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, samples BLOB NOT NULL);
"""
_FORMAT = "2"

#: The note of what was written from the outcomes; it goes as soon as one changes.
WRITTEN = "written"

#: The note of the latest number when outcomes were last forgotten.
_LAST_CLEARED = "last_cleared"

#: Values that a statement names at once: SQLite before 3.32 takes 999.
_MOST_VALUES = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one sample in one phase.

    `made` is JSON text: a list of pair rows, or one survey row; empty unless the status is "done". `stage` is where a
    quarantined sample failed: "data", "media", "survey" or "pairs". `fingerprint` is a digest of the sample as
    the data had it. `discarded` counts single pairs that were no preference, by reason. `fault` names the kind
    of an unexpected error and where it was raised; it is not recorded.
    """

    phase: Phase
    sample_id: str
    status: Status
    fingerprint: int
    calls: int = 0
    stage: str = ""
    path: str = ""
    reason: str = ""
    discarded: Mapping[str, int] = field(default_factory=dict)
    made: str = ""
    fault: str = ""


class Journal:
    """The outcomes of one round, keyed by phase and sample id.

    Args:
        path: The SQLite file, created if absent. The caller holds the lock of the run directory.
        maker: What made the outcomes (method, its parameters, seed, model): a later opening must bring the same.

    Raises:
        StoreError: From every method, when the file is unreadable, of another maker, or the disk is full.
    """

    def __init__(self, path: Path, maker: Mapping[str, Any]) -> None:
        self.path = path
        with self._explained():
            # Calls come from one thread at a time, though not always from the same one.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._open(maker)
        except BaseException:
            self._db.close()
            raise

    def _open(self, maker: Mapping[str, Any]) -> None:
        with self._explained():
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = TRUNCATE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(_NOTES)
        if (made_as := self.note("format")) not in (None, _FORMAT):
            raise StoreError(
                f"{self.path}: journal of format {made_as}, this mmalign reads {_FORMAT}; "
                "go on with the version that environment.json names, or name another output"
            )
        with self._transaction():
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
        recorded = self.note("maker")
        fresh = json.loads(json.dumps(dict(maker)))
        if recorded is None:
            self.set_notes({"format": _FORMAT, "maker": json.dumps(fresh)})
        elif changes := differences(json.loads(recorded), fresh):
            raise StoreError(
                f"{self.path}: holds outcomes made otherwise ({'; '.join(changes.values())}); "
                "put the old values back to go on, or name another output"
            )
        with self._explained():
            (last,) = self._db.execute("SELECT max(seq) FROM outcome").fetchone()
        self._seq: int = max(last or 0, int(self.note(_LAST_CLEARED) or 0))
        self._unseen: list[tuple[bytes, bytes]] = []

    @property
    def last_seq(self) -> int:
        """The number of the latest outcome; numbers only grow."""
        return self._seq

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def note(self, key: str) -> str | None:
        """A small fact about the round, or None."""
        with self._explained():
            row = self._db.execute("SELECT value FROM note WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def set_notes(self, notes: Mapping[str, str]) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO note VALUES (?, ?)", notes.items())

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Record outcomes, all or none; an outcome of the same phase and sample is replaced."""
        if not outcomes and not self._unseen:
            return
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", self._unseen)
            if outcomes:
                self._db.execute("DELETE FROM note WHERE key = ?", (WRITTEN,))
            self._delete_made((outcome.phase, outcome.sample_id) for outcome in outcomes)
            numbered = list(enumerate(outcomes, self._seq + 1))
            self._db.executemany(
                "INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        outcome.phase,
                        outcome.sample_id,
                        key_of(outcome.sample_id),
                        outcome.status,
                        seq,
                        outcome.fingerprint,
                        outcome.calls,
                        outcome.stage,
                        outcome.path,
                        outcome.reason,
                        json.dumps(outcome.discarded) if outcome.discarded else "",
                    )
                    for seq, outcome in numbered
                ),
            )
            self._db.executemany(
                "INSERT INTO made VALUES (?, ?)", ((seq, outcome.made) for seq, outcome in numbered if outcome.made)
            )
        self._seq += len(outcomes)
        self._unseen.clear()

    def _delete_made(self, keys: Iterable[tuple[str, str]]) -> None:
        self._db.executemany(
            "DELETE FROM made WHERE seq IN (SELECT seq FROM outcome WHERE phase = ? AND sample_id = ?)", keys
        )

    def clear(self, phase: Phase) -> None:
        """Forget every outcome of a phase."""
        with self._transaction():
            self._db.execute("DELETE FROM note WHERE key = ?", (WRITTEN,))
            self._db.execute("DELETE FROM made WHERE seq IN (SELECT seq FROM outcome WHERE phase = ?)", (phase,))
            self._db.execute("DELETE FROM outcome WHERE phase = ?", (phase,))
            self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (_LAST_CLEARED, str(self._seq)))

    def known(self, phase: Phase) -> Known:
        """All outcomes of a phase, by the keys of their samples."""
        with self._explained():
            rows = self._db.execute(
                "SELECT key, fingerprint, seq, CASE status WHEN ? THEN 0 WHEN ? THEN 1 ELSE 2 END "
                "FROM outcome WHERE phase = ?",
                (*STATUSES[:2], phase),
            )
            return Known.of(iter(lambda: rows.fetchmany(10_000), []))

    def seqs(self, phase: Phase) -> Numbers:
        """The numbers of all outcomes of a phase, ascending."""
        with self._explained():
            rows = self._db.execute("SELECT seq FROM outcome WHERE phase = ?", (phase,))
            return np.sort(np.fromiter((seq for (seq,) in rows), np.int64))

    def seen(self, digest: bytes) -> tuple[Numbers, Numbers] | None:
        """Keys and fingerprints of the samples of a chunk of data, where it was read before."""
        with self._explained():
            row = self._db.execute("SELECT samples FROM seen WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        keys, prints = np.frombuffer(row[0], np.int64).reshape(2, -1)
        return keys, prints

    def see(self, digest: bytes, keys: Numbers, prints: Numbers) -> None:
        """Remember the samples of a chunk; recorded with the next `write`."""
        self._unseen.append((digest, keys.tobytes() + prints.tobytes()))

    def written_since(self, phase: Phase, ids: Collection[str], seq: int) -> set[str]:
        """Those of `ids` (at most some thousands) that have an outcome with a number greater than `seq`."""
        if seq == self._seq:
            return set()
        found: set[str] = set()
        with self._explained():
            for some, places in _parts(ids):
                rows = self._db.execute(
                    f"SELECT sample_id FROM outcome WHERE phase = ? AND seq > ? AND sample_id IN ({places})",
                    (phase, seq, *some),
                )
                found.update(sample_id for (sample_id,) in rows)
        return found

    def made(self, seqs: Collection[int]) -> dict[int, Any]:
        """What was made under these numbers (at most some thousands), parsed."""
        found: dict[int, Any] = {}
        with self._explained():
            for some, places in _parts(seqs):
                rows = self._db.execute(f"SELECT seq, value FROM made WHERE seq IN ({places})", some)
                found.update((seq, json.loads(value)) for seq, value in rows)
        return found

    def outcomes(self, phase: Phase) -> Iterator[tuple[int, Status, int, str, str]]:
        """Number, status, calls, reason and discarded pairs (JSON or "") of every outcome, sorted by sample id."""
        with self._explained():
            yield from self._db.execute(
                "SELECT seq, status, calls, reason, discarded FROM outcome WHERE phase = ? ORDER BY sample_id", (phase,)
            )

    def quarantined(self, phase: Phase) -> Iterator[tuple[int, dict[str, str]]]:
        """Number and id, path, stage and reason of every quarantined sample, sorted by sample id."""
        with self._explained():
            rows = self._db.execute(
                "SELECT seq, sample_id, path, stage, reason FROM outcome "
                "WHERE phase = ? AND status = 'quarantined' ORDER BY sample_id",
                (phase,),
            )
            for seq, *values in rows:
                yield seq, dict(zip(("id", "path", "stage", "reason"), values, strict=True))

    def all_made(self, phase: Phase) -> Iterator[tuple[int, Any]]:
        """What the samples of a phase made, with its number, sorted by sample id; one at a time."""
        with self._explained():
            rows = self._db.execute(
                "SELECT seq, value FROM outcome JOIN made USING (seq) WHERE phase = ? ORDER BY sample_id", (phase,)
            )
            for seq, value in rows:
                yield seq, json.loads(value)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, such as a full disk.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if re.search("full|disk I/O", str(error)):
                remedy = "free some space and run the same command again, what is done is kept"
            elif re.search("readonly|unable to open", str(error)):
                remedy = "make the folder writable or name another output"
            elif "locked" in str(error):
                remedy = "another program has this file open, close it"
            else:
                remedy = "move this file away to make the round again, or name another output"
            raise StoreError(f"{self.path}: {error}; {remedy}") from None


def _parts(values: Collection[T]) -> Iterator[tuple[tuple[T, ...], str]]:
    """Values a part at a time, and the marks for them in a statement."""
    left = iter(values)
    while some := tuple(islice(left, _MOST_VALUES)):
        yield some, ",".join("?" * len(some))
