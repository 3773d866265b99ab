"""Rows of Parquet files that anybody may have made, read in batches of bounded size.

A few kilobytes can stand for gigabytes: pages are compressed, and a text that stands in a million rows is stored once.
So a file is refused when it says that it unpacks to far more than it is large, and texts are counted before they are
laid out for every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmalign.errors import MMAlignError

ROWS_PER_BATCH: Final = 1000
#: Fewer rows make a batch where they would take more: a row can hold pictures.
BYTES_PER_BATCH: Final = 2**26

#: A file may unpack to so many times its size, or to `SMALL` bytes where that is more.
MAX_RATIO: Final = 200
SMALL: Final = 2**28

#: What a row takes beside its texts, in bytes.
_ROW = 500

#: What pyarrow raises for a damaged file; a text that is not UTF-8 is found only when it is read.
_FAILURES: Final = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


@contextmanager
def opened(path: Path, error: type[MMAlignError]) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose columns have different names. Raises `error` for anything else, and for bombs."""
    if not path.is_file():  # a pipe would be waited for without end
        raise error(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        file = pq.ParquetFile(path)
    except _FAILURES as failed:
        raise error(f"{path}: not a readable Parquet file ({_line(failed)}); JSON lines end in .jsonl") from None
    with file:
        if twins := sorted(name for name, times in Counter(file.schema_arrow.names).items() if times > 1):
            raise error(f"{path}: has the column {twins[0]!r} twice; keep one")
        _refuse_bomb(file.metadata, path, error)
        yield file


def batches(
    file: pq.ParquetFile, columns: Sequence[str], path: Path, error: type[MMAlignError]
) -> Iterator[pa.RecordBatch]:
    """The columns, at most `ROWS_PER_BATCH` rows or about `BYTES_PER_BATCH` bytes at a time.

    Raises `error` where they cannot be read or are a bomb.
    """
    is_coded = _largest(file.metadata) * ROWS_PER_BATCH > SMALL
    kinds = {name: file.schema_arrow.field(name).type for name in columns}
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    total, most = 0, max(SMALL, MAX_RATIO * path.stat().st_size)
    try:
        # Texts that stand in many rows are then in memory once.
        with pq.ParquetFile(path, read_dictionary=texts if is_coded else None) as again:
            for batch in again.iter_batches(_num_rows(file.metadata), columns=list(columns), use_threads=False):
                total += _ROW * batch.num_rows + sum(map(_size, batch.columns))
                if total > most:
                    break
                laid_out = [column.dictionary_decode() if _is_coded(column) else column for column in batch.columns]
                yield pa.record_batch(laid_out, names=batch.schema.names)
            else:
                return
    except _FAILURES as failed:
        raise error(f"{path}: not a readable Parquet file ({_line(failed)})") from None
    raise error(f"{path}: its rows take more than {most} bytes, {MAX_RATIO} times its size; it is damaged, or a bomb")


def rows_of(batch: pa.RecordBatch, path: Path, error: type[MMAlignError]) -> list[dict[str, Any]]:
    """The rows of a batch as Python values. Raises `error` for texts that are not UTF-8."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except _FAILURES as failed:
        raise error(f"{path}: not a readable Parquet file ({_line(failed)})") from None
    return rows


def _refuse_bomb(about: pq.FileMetaData, path: Path, error: type[MMAlignError]) -> None:
    most = max(SMALL, MAX_RATIO * path.stat().st_size)
    for found in _groups(about):
        claimed = max(found.total_byte_size, found.num_rows)
        if claimed > most or min(found.total_byte_size, found.num_rows) < 0:
            raise error(
                f"{path}: claims to hold {claimed} bytes or rows, over the limit of {most} ({MAX_RATIO} times its "
                "size); it is damaged, or a bomb"
            )


def _groups(about: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    """What the footer says of the row groups. Of single columns pyarrow tells nothing when it is damaged: it aborts."""
    return [about.row_group(place) for place in range(about.num_row_groups)]


def _largest(about: pq.FileMetaData) -> int:
    """Bytes of the largest row group: no text in the file can be longer."""
    return max((found.total_byte_size for found in _groups(about)), default=0)


def _num_rows(about: pq.FileMetaData) -> int:
    """Rows of a batch, by the row group whose rows are the largest."""
    most = max((found.total_byte_size // max(1, found.num_rows) for found in _groups(about)), default=0)
    return max(1, min(ROWS_PER_BATCH, BYTES_PER_BATCH // max(1, most)))


def _is_coded(column: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(column.type))


def _size(column: pa.Array) -> int:
    """Bytes of a column once its texts are laid out for every row."""
    if not _is_coded(column):
        return int(column.nbytes)
    if column.dictionary.nbytes * len(column) <= SMALL // 16:
        return int(column.dictionary.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return pc.sum(lengths.take(column.indices)).as_py() or 0


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
