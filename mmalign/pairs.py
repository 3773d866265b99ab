"""Pairs on disk: the one thing that methods and training share.

A pair file is Parquet with the columns of `SCHEMA`; contexts, judgements and provenance are JSON text, so any tool
reads them. Files appear whole or not at all: written beside, flushed to disk, then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.errors import StoreError
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
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One row of a pair file. `context` is a list of turns as written by `Chat.to_rows`."""

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
        )

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
        }

    @classmethod
    def from_row(cls, row: Row) -> PairRow:
        """The inverse of `to_row`; the derived columns `prompt` and `media` are not read."""
        return cls(
            id=row["id"],
            sample_id=row["sample_id"],
            method=row["method"],
            round=row["round"],
            source=row["source"],
            context=json.loads(row["context"]),
            rejected_context=None if row["rejected_context"] is None else json.loads(row["rejected_context"]),
            chosen=row["chosen"],
            rejected=row["rejected"],
            p=row["p"],
            weight=row["weight"],
            gap=row["gap"],
            stage=row["stage"],
            chosen_spans=tuple((start, end) for start, end in row["chosen_spans"]),
            rejected_spans=tuple((start, end) for start, end in row["rejected_spans"]),
            judgements=json.loads(row["judgements"]),
            provenance=json.loads(row["provenance"]),
            seed=row["seed"],
        )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def write_pairs(path: Path, rows: Iterable[PairRow]) -> int:
    """Write rows to `path` atomically, in batches; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            with pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
                batch: list[Row] = []
                for row in rows:
                    batch.append(row.to_row())
                    count += 1
                    if len(batch) == 10_000:
                        writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                        batch.clear()
                if batch:
                    writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return count


def read_pairs(path: Path) -> list[PairRow]:
    """Read a pair file. Raises StoreError with the file's name when it is absent or not a pair file."""
    if not path.is_file():
        raise StoreError(f"{path}: no such pair file; `mmalign generate` makes one")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise StoreError(f"{path}: not a pair file, it lacks the columns {', '.join(missing)}")
    return [PairRow.from_row(row) for row in table.to_pylist()]
