"""What a round leaves behind for others: the pair file, the quarantine list and the counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mmalign.atomic import explained, writing
from mmalign.engine.environment import version_of
from mmalign.engine.journal import WRITTEN, Journal, Phase
from mmalign.engine.known import Wants
from mmalign.engine.rundir import RunDir
from mmalign.engine.work import AnyMethod, explain
from mmalign.errors import MMAlignError
from mmalign.methods import SelectingMethod
from mmalign.pairs import PairRow, write_rows
from mmalign.types import Row

#: By phase, which outcomes belong to samples of the data.
Wanted = Mapping[Phase, Wants]

#: Messages may hold file names or numbers; beyond this many different ones they are counted together.
MAX_REASONS = 1000


@dataclass(kw_only=True)
class Summary:
    """What became of the samples of a round.

    `done` samples have pairs; `empty` and `quarantined` count the others by reason. `discarded` counts single pairs
    that were no preference, `dropped` those that the method's own selection left out. `resumed` samples were done
    by earlier starts, `seconds` is the time of this one.
    """

    done: int = 0
    pairs: int = 0
    empty: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    discarded: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    model_calls: int = 0
    resumed: int = 0
    seconds: float = 0.0

    @property
    def num_samples(self) -> int:
        return self.done + self.empty.total() + self.quarantined.total()

    def to_row(self) -> Row:
        """What does not hang on the start."""
        return {key: value for key, value in vars(self).items() if key not in ("resumed", "seconds")}

    @classmethod
    def from_row(cls, row: Row) -> Self:
        values: dict[str, Any] = {
            key: Counter(value) if isinstance(value, dict) else value for key, value in row.items()
        }
        return cls(**values)


def write_results(
    run: RunDir, round: int, journal: Journal, method: AnyMethod, wanted: Wanted, go_on: Callable[[], None]
) -> Summary:
    """Write `pairs.parquet` and `quarantine.jsonl` from the journal, sorted by sample id; returns the counts.

    Where both were written from the same outcomes before, and nobody touched them since, they are left as they are.
    `go_on` is called now and then and may raise to stop. Raises StoreError, and MMAlignError where `select` fails.
    """
    path = run.pairs_path(round)
    files = (path, run.quarantine_path)
    source: Row = {"version": version_of("mmalign")}
    source.update((phase, _digest(journal, phase, wants)) for phase, wants in wanted.items())
    if (written := journal.note(WRITTEN)) is not None:
        note = json.loads(written)
        if note["source"] == source and note["files"] == _states(files):
            return Summary.from_row(note["summary"])
    summary = count(journal, wanted)
    write_quarantine(run, round, journal, wanted)
    made = _pair_rows(journal, wanted, go_on)
    if isinstance(method, SelectingMethod):
        everything = [PairRow.from_row(row) for row in made]
        selected = _selected(method, everything)
        summary.dropped = len(everything) - len(selected)
        made = (row.to_row() for row in selected)
    summary.pairs = write_rows(path, made)
    note = {"source": source, "files": _states(files), "summary": summary.to_row()}
    journal.set_notes({WRITTEN: json.dumps(note)})
    return summary


def _digest(journal: Journal, phase: Phase, wants: Wants) -> str:
    """A text that hangs on which outcomes are wanted; what they are can only change with a note of the journal."""
    seqs = journal.seqs(phase)
    return hashlib.blake2b(seqs[wants.among(seqs)].tobytes(), digest_size=16).hexdigest()


def _states(paths: Iterable[Path]) -> list[list[int] | None]:
    """What tells a file from the one that was there before: size, time of its last change, and its number."""
    states: list[list[int] | None] = []
    for path in paths:
        with explained(path):
            found = path.stat() if path.exists() else None
        states.append(None if found is None else [found.st_size, found.st_mtime_ns, found.st_ino])
    return states


def count(journal: Journal, wanted: Wanted) -> Summary:
    """Count the outcomes of a round by status and reason: the survey's where that was the end, or else the pairs'."""
    summary = Summary()
    for phase, wants in wanted.items():
        for seq, status, calls, reason, discarded in journal.outcomes(phase):
            if not wants(seq):
                continue
            summary.model_calls += calls
            if status == "done":
                summary.done += phase == "pairs"
            else:
                _add(summary.empty if status == "empty" else summary.quarantined, reason)
            if discarded and (phase == "pairs" or status != "done"):
                summary.discarded.update(json.loads(discarded))
    return summary


def write_quarantine(run: RunDir, round: int, journal: Journal, wanted: Wanted) -> None:
    """Write the quarantined samples of this round beside those of the others: round, id, path, stage, reason."""
    with writing(run.quarantine_path) as stream:
        for line in _other_rounds(run.quarantine_path, round):
            stream.write(line)
        for phase, wants in wanted.items():
            for seq, entry in journal.quarantined(phase):
                if wants(seq):
                    stream.write(json.dumps({"round": round, **entry}, ensure_ascii=False) + "\n")


def _pair_rows(journal: Journal, wanted: Wanted, go_on: Callable[[], None]) -> Iterator[Row]:
    wants = wanted["pairs"]
    for seq, rows in journal.all_made("pairs"):
        if wants(seq):
            go_on()
            yield from rows


def _selected(method: SelectingMethod, rows: list[PairRow]) -> list[PairRow]:
    try:
        selected = list(method.select(rows))
    except MMAlignError:
        raise
    except Exception as error:
        raise MMAlignError(f"method {type(method).__name__}: select failed with {explain(error, method)}") from error
    twice = [pair_id for pair_id, times in Counter(row.id for row in selected).items() if times > 1]
    if twice:
        raise MMAlignError(f"method {type(method).__name__}: select returned the pair {twice[0]!r} twice")
    return sorted(selected, key=lambda row: row.sample_id)


def _other_rounds(path: Path, round: int) -> Iterator[str]:
    """The lines of other rounds. What is no line of ours is left out: each round's journal still holds its own."""
    with explained(path):
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as stream:
                yield from (line for line in stream if _round_of(line) not in (None, round))


def _round_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["round"])
    except (ValueError, LookupError, TypeError):
        return None


def _add(reasons: Counter[str], reason: str) -> None:
    reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else "other reasons"] += 1
