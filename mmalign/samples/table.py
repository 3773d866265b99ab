"""Sample files in Parquet, as `mmalign prepare` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.chunked import Chunk, digest_of
from mmalign.errors import DataError
from mmalign.jsontext import parse_json
from mmalign.samples.checks import check_keys, shown, typed
from mmalign.tables import batches, opened, rows_of
from mmalign.types import MediaRef, Row, SampleRow

#: Columns of a sample file. Those behind `meta` tell what `mmalign prepare` saw and are null for text; `fps` and
#: `seconds` are null for pictures. `format` is a picture's format or a video's codec.
SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("duplicate_of", pa.string()),
    ]
)

#: Parquet metadata: the data folder, relative to the file where it lies below or above it.
ROOT_KEY: Final = b"mmalign.data_folder"

TEXTS: Final = ("id", "media", "prompt", "system", "meta")


def table_chunks(path: Path) -> Iterator[Chunk]:
    """The samples of a file. Raises DataError with its name, and with the number of the row at fault."""
    with opened(path, DataError) as file:
        names = file.schema_arrow.names
        check_keys(dict.fromkeys(names), tuple(SCHEMA.names), str(path))
        for name in names:
            kind = file.schema_arrow.field(name).type
            if name in TEXTS and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{path}: column {name} is {kind}, need string")
        if "id" not in names or "media" not in names:
            raise DataError(f"{path}: not a sample file, it needs columns id and media; `mmalign prepare` makes one")
        wanted = [name for name in TEXTS if name in names]
        is_apart = _is_apart(path, recorded_root(file))

        def rows(first: int, batch: pa.RecordBatch) -> Iterator[tuple[int, SampleRow]]:
            for number, row in enumerate(rows_of(batch, path, DataError), first):
                yield number, _stored_sample(row, f"{path}: row {number}", is_apart)

        first = 1
        for batch in batches(file, wanted, path, DataError):
            content = batch.serialize().to_pybytes()
            digest = digest_of(b"table", repr(batch.schema).encode(), str(is_apart).encode(), content)
            yield Chunk(batch.num_rows, digest, partial(rows, first, batch))
            first += batch.num_rows


def recorded_root(file: pq.ParquetFile) -> str | None:
    """The data folder as `mmalign prepare` wrote it down."""
    recorded = (file.schema_arrow.metadata or {}).get(ROOT_KEY)
    return None if recorded is None else str(recorded, "utf-8", "replace")


def _is_apart(path: Path, root: str | None) -> bool:
    """Whether a sample file names a data folder other than its own and those below it."""
    if root is None:
        return False
    return not Path(os.path.realpath(path.parent / root)).is_relative_to(os.path.realpath(path.parent))


def _stored_sample(row: Row, where: str, is_apart: bool) -> SampleRow:
    """The sample of a row. Of files in a folder apart from the sample file, only those whose content it knows."""
    if not row["id"]:
        raise DataError(f"{where}: 'id' is empty")
    media = _json_cell(row, "media", list, where, [])
    refs = []
    for entry in media:
        known = isinstance(entry, dict) and isinstance(entry.get("path"), str)
        if not known or entry.get("type") not in ("image", "video"):
            raise DataError(f'{where}: media holds {shown(entry)}, need {{"type": "image" or "video", "path": ...}}')
        check_keys(entry, ("type", "path", "sha256"), where)
        if is_apart and not entry.get("sha256"):
            raise DataError(
                f"{where}: names a file of another folder without its SHA-256; run `mmalign prepare`, or put the "
                "sample file into the folder of its media"
            )
        refs.append(MediaRef(entry["path"], entry["type"], typed(entry, "sha256", str, where, "")))
    meta = _json_cell(row, "meta", dict, where, {})
    return SampleRow(row["id"], tuple(refs), row.get("prompt") or "", row.get("system") or "", meta)


def _json_cell(row: Row, key: str, kind: type, where: str, default: Any) -> Any:
    text = row.get(key)
    if not text:
        return default
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: {key} {error}") from None
    return typed({key: value}, key, kind, where, default)
