"""What a round leaves behind for others: the pair file, the quarantine list and the counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmalign.engine.journal import Journal, Outcome, Phase
from mmalign.engine.rundir import RunDir, explained, sync_folder, writing
from mmalign.engine.work import AnyMethod, explain
from mmalign.errors import MMAlignError
from mmalign.methods import SelectingMethod
from mmalign.pairs import PairRow, write_pairs

#: By phase, whether the outcome of this number belongs to a sample of the data.
Wanted = Mapping[Phase, Callable[[int], bool]]

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


def write_results(
    run: RunDir, round: int, journal: Journal, method: AnyMethod, wanted: Wanted, go_on: Callable[[], None]
) -> Summary:
    """Write `pairs.parquet` and `quarantine.jsonl` from the journal, sorted by sample id; returns the counts.

    `go_on` is called now and then and may raise to stop. Raises StoreError, and MMAlignError where `select` fails.
    """
    summary = count(journal, wanted)
    write_quarantine(run, round, journal, wanted)
    made = _pair_rows(journal, wanted, go_on)
    path = run.pairs_path(round)
    for partial in path.parent.glob(f".{path.name}.*"):
        partial.unlink()  # Left by a kill in the middle of writing.
    rows: Iterator[PairRow] | list[PairRow] = made
    if isinstance(method, SelectingMethod):
        everything = list(made)
        rows = _selected(method, everything)
        summary.dropped = len(everything) - len(rows)
    with explained(path):
        summary.pairs = write_pairs(path, rows)
        sync_folder(path.parent)
    return summary


def count(journal: Journal, wanted: Wanted) -> Summary:
    """Count the outcomes of a round by status and reason."""
    summary = Summary()
    for outcome in _final(journal, wanted, summary):
        if outcome.status == "done":
            summary.done += 1
        else:
            _add(summary.empty if outcome.status == "empty" else summary.quarantined, outcome.reason)
        summary.discarded.update(outcome.discarded)
    return summary


def write_quarantine(run: RunDir, round: int, journal: Journal, wanted: Wanted) -> None:
    """Write the quarantined samples of this round beside those of the others: round, id, path, stage, reason."""
    others = _other_rounds(run.quarantine_path, round)
    with writing(run.quarantine_path) as stream:
        stream.writelines(others)
        for outcome in _final(journal, wanted, Summary()):
            if outcome.status == "quarantined":
                entry = {
                    "round": round,
                    "id": outcome.sample_id,
                    "path": outcome.path,
                    "stage": outcome.stage,
                    "reason": outcome.reason,
                }
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _final(journal: Journal, wanted: Wanted, summary: Summary) -> Iterator[Outcome]:
    """The outcome that counts of each sample: of the survey where that was the end, of the pairs otherwise."""
    for phase, wants in wanted.items():
        for seq, outcome in journal.outcomes(phase):
            if wants(seq):
                summary.model_calls += outcome.calls
                if phase == "pairs" or outcome.status != "done":
                    yield outcome


def _pair_rows(journal: Journal, wanted: Wanted, go_on: Callable[[], None]) -> Iterator[PairRow]:
    for seq, rows in journal.all_made("pairs"):
        if wanted["pairs"](seq):
            go_on()
            yield from map(PairRow.from_row, rows)


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


def _other_rounds(path: Path, round: int) -> list[str]:
    with explained(path):
        if not path.exists():
            return []
        with path.open(encoding="utf-8") as stream:
            return [line for line in stream if json.loads(line)["round"] != round]


def _add(reasons: Counter[str], reason: str) -> None:
    reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else "other reasons"] += 1
