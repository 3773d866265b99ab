"""The journal of one round: what became of every sample, safe against `kill -9` and power cuts.

One SQLite file, written by the driver only. It uses SQLite's rollback journal (mode TRUNCATE) and full synchronisation:
a transaction that was cut off is rolled back when the file is next opened, on any file system with working locks and
fsync. The write-ahead log would need shared memory, which network file systems do not give, and leaves the data in two
files; writing in batches makes the difference in speed small.

Outcomes are small rows, so that a million of them are looked up in seconds; what a method made (pairs, survey rows)
lies in a second, append-only table.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mmalign.engine.rundir import differences
from mmalign.errors import StoreError

Phase = Literal["survey", "pairs"]
Status = Literal["done", "empty", "quarantined"]

_TABLES = """
CREATE TABLE IF NOT EXISTS note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    phase TEXT NOT NULL, sample_id TEXT NOT NULL, status TEXT NOT NULL, seq INTEGER NOT NULL,
    fingerprint TEXT NOT NULL, calls INTEGER NOT NULL, stage TEXT NOT NULL, path TEXT NOT NULL,
    reason TEXT NOT NULL, discarded TEXT NOT NULL, PRIMARY KEY (phase, sample_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS made (seq INTEGER PRIMARY KEY, value TEXT NOT NULL);
"""
_FORMAT = "1"


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
    fingerprint: str
    calls: int = 0
    stage: str = ""
    path: str = ""
    reason: str = ""
    discarded: Mapping[str, int] = field(default_factory=dict)
    made: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A journalled outcome, without what was made."""

    sample_id: str
    status: Status
    seq: int
    fingerprint: str


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
            with self._transaction():
                for statement in _TABLES.split(";\n"):
                    self._db.execute(statement)
        if (made_as := self.note("format")) not in (None, _FORMAT):
            raise StoreError(f"{self.path}: journal of format {made_as}, this mmalign reads {_FORMAT}; update mmalign")
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
        self._seq: int = last or 0

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
        if not outcomes:
            return
        with self._transaction():
            self._delete_made((outcome.phase, outcome.sample_id) for outcome in outcomes)
            numbered = list(enumerate(outcomes, self._seq + 1))
            self._db.executemany(
                "INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        outcome.phase,
                        outcome.sample_id,
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

    def _delete_made(self, keys: Iterable[tuple[str, str]]) -> None:
        self._db.executemany(
            "DELETE FROM made WHERE seq IN (SELECT seq FROM outcome WHERE phase = ? AND sample_id = ?)", keys
        )

    def clear(self, phase: Phase) -> None:
        """Forget every outcome of a phase."""
        with self._transaction():
            self._db.execute("DELETE FROM made WHERE seq IN (SELECT seq FROM outcome WHERE phase = ?)", (phase,))
            self._db.execute("DELETE FROM outcome WHERE phase = ?", (phase,))

    def find(self, phase: Phase, ids: Collection[str]) -> dict[str, Entry]:
        """The journalled outcomes among `ids` (at most some hundreds)."""
        places = ",".join("?" * len(ids))
        with self._explained():
            rows = self._db.execute(
                f"SELECT sample_id, status, seq, fingerprint FROM outcome WHERE phase = ? AND sample_id IN ({places})",
                (phase, *ids),
            )
            return {row[0]: Entry(*row) for row in rows}

    def made(self, seqs: Collection[int]) -> dict[int, Any]:
        """What was made under these numbers (at most some hundreds), parsed."""
        places = ",".join("?" * len(seqs))
        with self._explained():
            rows = self._db.execute(f"SELECT seq, value FROM made WHERE seq IN ({places})", tuple(seqs))
            return {seq: json.loads(value) for seq, value in rows}

    def outcomes(self, phase: Phase) -> Iterator[tuple[int, Outcome]]:
        """Every outcome with its number, sorted by sample id, without what was made; one at a time."""
        with self._explained():
            rows = self._db.execute(
                "SELECT seq, phase, sample_id, status, fingerprint, calls, stage, path, reason, discarded "
                "FROM outcome WHERE phase = ? ORDER BY sample_id",
                (phase,),
            )
            for seq, name, sample_id, status, fingerprint, calls, stage, path, reason, discarded in rows:
                yield (
                    seq,
                    Outcome(
                        phase=name,
                        sample_id=sample_id,
                        status=status,
                        fingerprint=fingerprint,
                        calls=calls,
                        stage=stage,
                        path=path,
                        reason=reason,
                        discarded=json.loads(discarded) if discarded else {},
                    ),
                )

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
