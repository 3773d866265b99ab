"""Rows of files of any format: Parquet, JSON lines and JSON arrays, read one at a time, however large they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from mmalign.errors import DataError
from mmalign.jsontext import MAX_LINE_BYTES, numbered_lines, parse_json
from mmalign.tables import batches, opened, rows_of
from mmalign.types import Row

SUFFIXES: Final = (".parquet", ".jsonl", ".json")
_CHUNK: Final = 1 << 20
_SPACE: Final = re.compile(r"\s*")


def records(path: Path) -> Iterator[Row]:
    """The rows of a file, in order. Raises DataError, one line with file and row, for what is no row."""
    rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {place} is {row!r:.60}; it must be an object")
        yield row


def count_records(path: Path) -> int | None:
    """How many rows a file has, where that is known without reading it. Raises DataError."""
    if path.suffix != ".parquet":
        return None
    with opened(path, DataError) as file:
        return int(file.metadata.num_rows)


def data_files(source: Path) -> list[Path]:
    """The files of a source: itself, or the data files of a folder in the order of their names. Raises DataError."""
    if not source.is_dir():
        if source.suffix not in SUFFIXES:
            raise DataError(f"{source}: is no {', '.join(SUFFIXES)} file, so its rows cannot be read")
        return [source]
    found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES and path.name != "dataset_info.json")
    if not found:
        raise DataError(f"{source}: holds no {', '.join(SUFFIXES)} file")
    if len(found) > 1 and {path.suffix for path in found} != {".parquet"}:
        raise DataError(f"{source}: holds {len(found)} data files ({found[0].name}, {found[1].name}, ...); name one")
    return found


def _parquet(path: Path) -> Iterator[Any]:
    with opened(path, DataError) as file:
        for batch in batches(file, file.schema_arrow.names, path, DataError):
            yield from rows_of(batch, path, DataError)


def _json(path: Path) -> Iterator[Any]:
    """JSON lines, or the elements of one array; which of them is told by the first character."""
    if not path.is_file():  # a pipe would be waited for without end
        raise DataError(f"{path}: is not a file")
    with path.open(encoding="utf-8-sig") as stream:
        try:
            start = stream.read(_CHUNK).lstrip()
            if start.startswith("["):
                yield from _elements(stream, start[1:], path)
                return
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    for number, text in numbered_lines(path, DataError):
        try:
            yield parse_json(text)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None


def _elements(stream: TextIO, text: str, path: Path) -> Iterator[Any]:
    """The elements of an array whose opening bracket has been read; the file is never held as a whole."""
    decoder = json.JSONDecoder()
    at, place, is_next = 0, 0, True
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches nothing at all, too
        if at == len(text):
            text, at = stream.read(_CHUNK), 0
            if not text:
                raise DataError(f"{path}: ends before row {place}, in the middle of its array; it was cut off")
            continue
        if text[at] == "]" and (not is_next or not place):
            _refuse_more(stream, text[at + 1 :], path)
            return
        if not is_next:
            if text[at] != ",":
                raise DataError(f"{path}: row {place} is not JSON (no comma before it)")
            at, is_next = at + 1, True
            continue
        try:
            end = decoder.raw_decode(text, at)[1]
        except ValueError as error:
            more = stream.read(_CHUNK) if len(text) - at <= MAX_LINE_BYTES else ""
            if not more:
                raise DataError(f"{path}: row {place} is not JSON, or too long ({error})") from None
            text, at = text[at:] + more, 0
            continue
        except RecursionError:
            raise DataError(f"{path}: row {place} is nested too deep") from None
        try:
            yield parse_json(text[at:end])
        except ValueError as error:
            raise DataError(f"{path}: row {place} {error}") from None
        at, place, is_next = end, place + 1, False


def _refuse_more(stream: TextIO, text: str, path: Path) -> None:
    """Raises DataError where an array is not all that a file holds: what follows must not be lost without a word."""
    while text:
        if text.strip():
            raise DataError(f"{path}: goes on after the end of its array; it must hold one array, or JSON lines")
        text = stream.read(_CHUNK)
