"""Pair files in Parquet. They appear whole or not at all: written beside, flushed to disk, then renamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.atomic import explained, writing_bytes
from mmalign.errors import StoreError
from mmalign.pairs.row import PairRow
from mmalign.tables import batches, opened, rows_of
from mmalign.types import Row

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


def read_table(path: Path) -> Iterator[PairRow]:
    """The rows of a Parquet file. Raises StoreError with its name, and with the number of the row at fault."""
    with opened(path, StoreError) as file:
        names = file.schema_arrow.names
        if missing := [name for name in REQUIRED if name not in names]:
            raise StoreError(f"{path}: not a pair file, it lacks the columns {', '.join(missing)}")
        place = 0
        for batch in batches(file, [name for name in SCHEMA.names if name in names], path, StoreError):
            for row in rows_of(_typed(batch, path, place), path, StoreError):
                yield _read(row, place, path)
                place += 1


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
