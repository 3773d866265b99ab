"""The numbers of the page: results over seeds, lengths and yields. Pure: values in, values out, no files."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("before", "after", "control")


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one number. `std` is the sample standard deviation (n - 1), 0 for a single value."""

    mean: float
    std: float
    low: float
    high: float
    num: int


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, deviation, smallest and largest of the finite values; None when there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    std = statistics.stdev(finite) if len(finite) > 1 else 0.0
    return Spread(statistics.fmean(finite), std, min(finite), max(finite), len(finite))


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of `evaluation.json`: a model (or a control) measured once."""

    name: str
    kind: str
    seed: int | None
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All of `evaluation.json`; `examples` stay as the file has them. `what` was measured on: "drawn clips"."""

    task: str
    num_scenes: int
    columns: tuple[str, ...]
    rows: tuple[Measured, ...]
    notes: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    what: str = ""

    @property
    def unit(self) -> str:
        """What was measured on, in one word."""
        return "clips" if "clip" in self.what else "pictures"

    @classmethod
    def of(cls, content: Any) -> Evaluation:
        """Read the file's JSON value. Raises ValueError that names the wrong key."""
        if not isinstance(content, dict):
            raise ValueError("the file does not hold a JSON object")
        rows = []
        for number, row in enumerate(_list(content, "rows")):
            if not isinstance(row, dict) or not isinstance(row.get("values"), dict) or row.get("kind") not in KINDS:
                raise ValueError(f"rows[{number}] needs a name, a kind ({', '.join(KINDS)}) and values")
            values = {str(k): float(v) for k, v in row["values"].items() if isinstance(v, int | float)}
            seed = row.get("seed")
            rows.append(
                Measured(
                    str(row.get("name", row["kind"])), row["kind"], seed if isinstance(seed, int) else None, values
                )
            )
        columns = tuple(map(str, _list(content, "columns"))) or tuple(
            dict.fromkeys(k for row in rows for k in row.values)
        )
        num = content.get("num_scenes", 0)
        return cls(
            str(content.get("task", "")),
            num if isinstance(num, int) else 0,
            columns,
            tuple(rows),
            tuple(map(str, _list(content, "notes"))),
            tuple(entry for entry in _list(content, "examples") if isinstance(entry, dict)),
            str(content.get("what", "")),
        )


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, it is {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the result table: the same model or control over its seeds."""

    name: str
    kind: str
    seeds: tuple[int, ...]
    values: Mapping[str, Spread | None]


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation with the rows of all; notes and examples are those of the first.

    Raises ValueError when they were not measured alike.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if (other.task, other.num_scenes, other.unit, other.columns) != (
            first.task,
            first.num_scenes,
            first.unit,
            first.columns,
        ):
            raise ValueError("the runs were measured with different prompts, pictures or clips, or columns")
    return replace(first, rows=tuple(row for evaluation in evaluations for row in evaluation.rows))


def table(evaluation: Evaluation) -> list[Line]:
    """Rows of equal name and kind taken together over seeds: before first, then after, then the controls."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in evaluation.rows:
        groups.setdefault((row.kind, row.name), []).append(row)
    return [
        Line(
            name,
            kind,
            tuple(row.seed for row in rows if row.seed is not None),
            {key: spread(row.values[key] for row in rows if key in row.values) for key in evaluation.columns},
        )
        for (kind, name), rows in sorted(groups.items(), key=lambda group: KINDS.index(group[0][0]))
    ]


def changes(evaluation: Evaluation, column: str) -> list[float]:
    """After minus before of a column, seed by seed; a single `before` without a seed counts for all of them."""
    before = {row.seed: row.values[column] for row in evaluation.rows if row.kind == "before" and column in row.values}
    return [
        row.values[column] - before.get(row.seed, before.get(None, math.nan))
        for row in evaluation.rows
        if row.kind == "after" and column in row.values and (row.seed in before or None in before)
    ]


def share_error(share: float, num: int) -> float:
    """Standard error of a share counted on `num` items; kept above 0 at 0 and 1 by adding one item of each kind."""
    if num <= 0:
        return math.inf
    p = (share * num + 1) / (num + 2)
    return math.sqrt(p * (1 - p) / num)


@dataclass(frozen=True, slots=True)
class PairNumbers:
    """A pair file at a glance: words are counted by whitespace, `gap` is None when no pair has one."""

    num: int
    num_samples: int
    sources: tuple[tuple[str, int], ...]
    chosen_words: Spread | None
    rejected_words: Spread | None
    gap: Spread | None


def num_words(texts: pa.ChunkedArray | pa.Array) -> list[int]:
    """Words of each text, split at whitespace."""
    split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    counts: list[int] = pc.if_else(empty, 0, pc.list_value_length(split)).to_pylist()
    return counts


def pair_numbers(pairs: pa.Table) -> PairNumbers:
    """Counts and lengths of a table with the columns sample_id, source, chosen, rejected and gap."""
    sources = Counter(pairs["source"].to_pylist())
    return PairNumbers(
        pairs.num_rows,
        pc.count_distinct(pairs["sample_id"]).as_py(),
        tuple(sorted(sources.items(), key=lambda entry: (-entry[1], entry[0]))),
        spread(num_words(pairs["chosen"])),
        spread(num_words(pairs["rejected"])),
        spread(gap for gap in pairs["gap"].to_pylist() if gap is not None),
    )


def pick_evenly(sources: Sequence[str], gaps: Sequence[float | None], most: int) -> list[int]:
    """At most `most` row numbers, in order: equal shares per source, and within one evenly along its sorted gaps.

    A source with fewer rows than its share leaves the rest to the others.
    """
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(source, []).append(index)
    picked: list[int] = []
    left = max(most, 0)
    by_size = sorted(groups.items(), key=lambda group: (len(group[1]), group[0]))
    for position, (_, rows) in enumerate(by_size):
        quota = min(len(rows), math.ceil(left / (len(by_size) - position)))
        left -= quota
        rows.sort(key=lambda index: (gaps[index] is None, gaps[index] or 0.0, index))
        picked += [rows[len(rows) * step // quota] for step in range(quota)]
    return sorted(picked)
