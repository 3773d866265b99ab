"""Pairs on disk: the one thing that methods and training share.

A pair file is Parquet with the columns of `SCHEMA`; contexts, judgements, provenance, further answers and numbers are
JSON text, so any tool reads them. Files appear whole or not at all: written beside, flushed to disk, then renamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.atomic import explained, writing_bytes
from mmalign.errors import StoreError
from mmalign.jsontext import numbered_lines, parse_json
from mmalign.sides import (
    AnswerRow,
    SideRow,
    ValueRow,
    is_finite,
    is_span,
    laid_out,
    nested,
    read_sides,
    read_turns,
    read_values,
    shape_of,
    side_of,
    to_json,
)
from mmalign.tables import batches, opened, rows_of
from mmalign.types import MediaRef, Pair, Row

SPANS = pa.list_(pa.list_(pa.int32()))
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("media", pa.list_(pa.string()), nullable=False),
        pa.field("chosen", pa.string(), nullable=False),
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("p", pa.float64(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("gap", pa.float64()),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("chosen_spans", SPANS, nullable=False),
        pa.field("rejected_spans", SPANS, nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("rejected_context", pa.string()),
        pa.field("judgements", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("values", pa.string()),
        pa.field("sides", pa.string()),
    ]
)
#: Columns that every pair file has; those of older versions lack the last ones.
REQUIRED = tuple(SCHEMA.names[:-2])


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One row of a pair file. `context` is a list of turns as written by `Chat.to_rows`.

    `sides` holds further answers by name and `values` further numbers (`mmalign.sides`).
    """

    id: str
    sample_id: str
    method: str
    context: list[Row]
    chosen: str
    rejected: str
    round: int = 0
    source: str = ""
    rejected_context: list[Row] | None = None
    p: float = 1.0
    weight: float = 1.0
    gap: float | None = None
    stage: int = 0
    chosen_spans: tuple[tuple[int, int], ...] = ()
    rejected_spans: tuple[tuple[int, int], ...] = ()
    judgements: list[Row] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    values: Mapping[str, ValueRow] = field(default_factory=dict)
    sides: Mapping[str, SideRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lists among sides and values count as tuples."""
        for name in ("sides", "values"):
            parts = {key: nested(part) for key, part in getattr(self, name).items()}
            object.__setattr__(self, name, parts)

    @classmethod
    def of(cls, pair: Pair, *, sample_id: str, index: int, method: str, round: int, seed: int) -> PairRow:
        """The row of a pair that a method made; `index` counts the pairs of one sample."""
        return cls(
            id=f"{sample_id}#{round}.{index}",
            sample_id=sample_id,
            method=method,
            round=round,
            source=pair.source,
            context=pair.context.to_rows(),
            rejected_context=None if pair.rejected_context is None else pair.rejected_context.to_rows(),
            chosen=pair.chosen.text,
            rejected=pair.rejected.text,
            p=pair.p,
            weight=pair.weight,
            gap=pair.gap,
            stage=pair.stage,
            chosen_spans=pair.chosen_spans,
            rejected_spans=pair.rejected_spans,
            judgements=[judgement.to_row() for judgement in pair.judgements],
            provenance=dict(pair.provenance),
            seed=seed,
            values=read_values(pair.values),
            sides={name: side_of(answers) for name, answers in pair.sides.items()},
        )

    def side(self, name: str) -> SideRow:
        """The answers called `name`, "chosen" and "rejected" among them; KeyError where the pair carries none."""
        if name == "chosen":
            return AnswerRow(text=self.chosen, spans=self.chosen_spans)
        if name == "rejected":
            return AnswerRow(text=self.rejected, context=self.rejected_context, spans=self.rejected_spans)
        return self.sides[name]

    def value(self, name: str) -> ValueRow:
        """The numbers called `name`, "gap" among them; KeyError where the pair carries none."""
        return self.gap if name == "gap" else self.values[name]

    @property
    def contexts(self) -> list[list[Row]]:
        """The contexts of all its answers, the pair's own first."""
        further = [flat for side in self.sides.values() for flat in laid_out(side, shape_of([side]))]
        others = [self.rejected_context, *(answer.context for answer in further if answer is not None)]
        return [self.context, *(context for context in others if context is not None)]

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """The media of the context, in order."""
        return tuple(
            MediaRef.from_row(part) for turn in self.context for part in turn["content"] if part["type"] != "text"
        )

    @property
    def prompt(self) -> str:
        """The text of the last user turn."""
        for turn in reversed(self.context):
            if turn["role"] == "user":
                return "".join(part["text"] for part in turn["content"] if part["type"] == "text")
        return ""

    def to_row(self) -> Row:
        """Values for one Parquet row of `SCHEMA`; equal pairs give equal bytes."""
        return {
            "id": self.id,
            "sample_id": self.sample_id,
            "method": self.method,
            "round": self.round,
            "source": self.source,
            "prompt": self.prompt,
            "media": [ref.path for ref in self.media],
            "chosen": self.chosen,
            "rejected": self.rejected,
            "p": self.p,
            "weight": self.weight,
            "gap": self.gap,
            "stage": self.stage,
            "chosen_spans": [list(span) for span in self.chosen_spans],
            "rejected_spans": [list(span) for span in self.rejected_spans],
            "context": _json(self.context),
            "rejected_context": None if self.rejected_context is None else _json(self.rejected_context),
            "judgements": _json(self.judgements),
            "provenance": _json(dict(self.provenance)),
            "seed": self.seed,
            "values": _json({name: to_json(value, float) for name, value in self.values.items()}),
            "sides": _json({name: to_json(side, AnswerRow.to_row) for name, side in self.sides.items()}),
        }

    @classmethod
    def from_row(cls, row: Row) -> PairRow:
        """The inverse of `to_row`; the derived columns `prompt` and `media` are not read.

        Raises ValueError, one line, for numbers and JSON columns that do not hold what they should.
        """
        _check_numbers(row)
        other = _parsed(row, "rejected_context")
        return cls(
            id=row["id"],
            sample_id=row["sample_id"],
            method=row["method"],
            round=row["round"],
            source=row["source"],
            context=read_turns(_parsed(row, "context"), "context"),
            rejected_context=None if other is None else read_turns(other, "rejected_context"),
            chosen=row["chosen"],
            rejected=row["rejected"],
            p=float(row["p"]),
            weight=float(row["weight"]),
            gap=None if row["gap"] is None else float(row["gap"]),
            stage=row["stage"],
            chosen_spans=_spans(row, "chosen_spans"),
            rejected_spans=_spans(row, "rejected_spans"),
            judgements=_judgements(_parsed(row, "judgements")),
            provenance=_provenance(_parsed(row, "provenance")),
            seed=row["seed"],
            values=read_values(_parsed(row, "values") or {}),
            sides=read_sides(_parsed(row, "sides") or {}),
        )


#: Columns of whole numbers, and their bits.
_BITS = {"round": 31, "stage": 31, "seed": 63}


def _check_numbers(row: Row) -> None:
    """Raises ValueError, one line, for a label that is no probability and for weights and gaps that scale nothing."""
    allowed = {
        "p": (0 <= row["p"] <= 1, "a probability, from 0 to 1"),
        "weight": (row["weight"] >= 0 and is_finite(row["weight"]), "a finite number, 0 or more"),
        "gap": (row["gap"] is None or is_finite(row["gap"]), "a finite number, or null for none"),
        **{name: (abs(row[name]) < 2**bits, f"a whole number below 2**{bits}") for name, bits in _BITS.items()},
    }
    for name, (holds, told) in allowed.items():
        if not holds:
            raise ValueError(f"{name} is {row[name]!r:.60}; it must be {told}")


def _parsed(row: Row, column: str) -> Any:
    """The JSON value of a column; None where there is none."""
    text = row.get(column)
    try:
        return None if text is None else parse_json(text)
    except ValueError as error:
        raise ValueError(f"{column} is {text!r:.60}; it {error}") from None


def _spans(row: Row, column: str) -> tuple[tuple[int, int], ...]:
    if not all(map(is_span, row[column])):
        raise ValueError(f"{column} is {row[column]!r:.60}; it must be a list of [start, end] in characters")
    return tuple((start, end) for start, end in row[column])


def _judgements(value: Any) -> list[Row]:
    def is_judgement(entry: Any) -> bool:
        return isinstance(entry, Mapping) and not (_is_number(entry.get("value")) and not is_finite(entry["value"]))

    if not isinstance(value, list) or not all(map(is_judgement, value)):
        raise ValueError(f"judgements is {value!r:.60}; it must be a list of objects with judge, value and reason")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _provenance(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"provenance is {value!r:.60}; it must be an object")
    return value


#: Made once: `json.dumps` with options makes an encoder for each call, and a row has five such columns.
_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode


def write_pairs(path: Path, rows: Iterable[PairRow]) -> int:
    """Write rows to `path`, whole or not at all, in batches; returns how many. Raises StoreError."""
    return write_rows(path, (row.to_row() for row in rows))


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """`write_pairs` of what `PairRow.to_row` gave."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with writing_bytes(path) as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            count += 1
            if len(batch) == 10_000:
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                batch.clear()
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
    return count


def read_pairs(path: Path) -> list[PairRow]:
    """Read a pair file: Parquet as `write_pairs` makes it, or JSON lines of one's own where the name ends in .jsonl.

    A JSON line holds columns of `PairRow`, JSON columns as they are; only `context` must be there. Raises StoreError,
    one line with the file's name, when it is absent or not a pair file, and with the row's number when a row holds what
    it should not.
    """
    return list(iter_pairs(path))


def iter_pairs(path: Path) -> Iterator[PairRow]:
    """The rows of `read_pairs`, one by one: a file of any size needs little memory. Raises StoreError as it does."""
    if not path.is_file():
        raise StoreError(f"{path}: no such pair file; `mmalign generate` makes one")
    if path.suffix == ".jsonl":
        yield from _read_lines(path)
        return
    with opened(path, StoreError) as file:
        names = file.schema_arrow.names
        if missing := [name for name in REQUIRED if name not in names]:
            raise StoreError(f"{path}: not a pair file, it lacks the columns {', '.join(missing)}")
        place = 0
        for batch in batches(file, [name for name in SCHEMA.names if name in names], path, StoreError):
            for row in rows_of(_typed(batch, path, place), path, StoreError):
                yield _read(row, place, path)
                place += 1


#: Columns of JSON lines that hold no JSON, and what they hold.
_PLAIN: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "sample_id", "method", "source", "chosen", "rejected"), (str,)),
    **dict.fromkeys(("p", "weight", "gap"), (int, float)),
    **dict.fromkeys(("round", "stage", "seed"), (int,)),
}
_JSON = ("context", "rejected_context", "judgements", "provenance", "values", "sides")


def _read_lines(path: Path) -> Iterator[PairRow]:
    for place, (number, text) in enumerate(numbered_lines(path, StoreError)):
        try:
            yield pair_of_json(parse_json(text), place)
        except ValueError as error:
            raise StoreError(f"{path}:{number}: {error}") from None


def pair_to_json(row: PairRow) -> Row:
    """A row as JSON values, for a line of JSON; `pair_of_json` reads them back."""
    values = row.to_row()
    columns = {name: value for name, value in values.items() if name in _PLAIN or name.endswith("_spans")}
    return columns | {name: json.loads(values[name]) for name in _JSON if values[name] is not None}


def pair_of_json(given: Any, place: int = 0) -> PairRow:
    """A row from the values of a JSON line. Raises ValueError, one line, for what it should not hold.

    Without an id it is called after its `place` in the file.
    """
    if not isinstance(given, dict) or "context" not in given:
        raise ValueError(f"{given!r:.60} is no pair; it must be an object with context, chosen, rejected, ...")
    spans = {name: given.get(name, []) for name in ("chosen_spans", "rejected_spans")}
    known = (*_PLAIN, *_JSON, *spans, "prompt", "media")
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"unknown column {unknown[0]!r}; known are {', '.join(known)}")
    for name, kinds in _PLAIN.items():
        value = given.get(name)
        if (
            name in given
            and (not isinstance(value, kinds) or isinstance(value, bool))
            and (name, value) != ("gap", None)
        ):
            raise ValueError(f"{name} is {value!r:.60}; it must be {' or '.join(kind.__name__ for kind in kinds)}")
    for name, value in spans.items():
        if not isinstance(value, list) or not all(map(is_span, value)):
            raise ValueError(f"{name} is {value!r:.60}; it must be a list of [start, end] in characters")
    plain = PairRow(
        id=f"own-{place}", sample_id=f"own-{place}", method="own", context=[], chosen="", rejected=""
    ).to_row()
    plain |= {name: given[name] for name in _PLAIN if name in given} | spans
    return PairRow.from_row(plain | {name: json.dumps(given[name]) for name in _JSON if given.get(name) is not None})


def _typed(batch: pa.RecordBatch, path: Path, first: int) -> pa.RecordBatch:
    """The columns of `SCHEMA` in its types; the batch begins with the file's row `first`."""
    columns = {}
    for name in batch.schema.names:
        wanted, given = SCHEMA.field(name), batch.column(name)
        try:
            columns[name] = given.cast(wanted.type)
        except (pa.ArrowException, ValueError):
            raise StoreError(f"{path}: column {name} holds {given.type}; it must hold {wanted.type}") from None
        if not wanted.nullable and columns[name].null_count:
            place = first + columns[name].is_null().index(True).as_py()
            raise StoreError(f"{path}: row {place}: column {name} is empty; it must hold {wanted.type}")
    return pa.record_batch(list(columns.values()), names=list(columns))


def _read(row: Row, place: int, path: Path) -> PairRow:
    try:
        return PairRow.from_row(row)
    except ValueError as error:
        raise StoreError(f"{path}: row {place} (pair {row['id']}): {error}") from None
