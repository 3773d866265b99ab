"""What every format is: how its rows are read and written, and what it cannot express."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.convert.baggage import Baggage
from mmalign.convert.seen import Seen, Unfit, seen_of
from mmalign.convert.shelf import Shelf
from mmalign.pairs import PairRow
from mmalign.types import Row


@dataclass(slots=True)
class Survey:
    """What a conversion holds, known before its first row is written: formats differ by it."""

    pairs: int = 0
    has_images: bool = False
    has_videos: bool = False
    has_contexts: bool = False
    unfit: int = 0
    first_unfit: str = ""
    missing: int = 0
    first_missing: str = ""
    has_held: bool = False

    def add(self, seen: Seen) -> None:
        """Count a pair that fits."""
        self.pairs += 1
        self.has_contexts |= seen.rejected_turns is not None
        for medium in seen.media:
            self.has_images |= medium.kind == "image"
            self.has_videos |= medium.kind == "video"
            self.has_held |= medium.content is not None

    def skip(self, told: str) -> None:
        """Count a pair that does not fit."""
        self.unfit += 1
        self.first_unfit = self.first_unfit or told

    def miss(self, name: str) -> None:
        """Count a file that is not there."""
        self.missing += 1
        self.first_missing = self.first_missing or name

    @property
    def has_media(self) -> bool:
        return self.has_images or self.has_videos


class Writer(Protocol):
    """Takes the rows of a conversion, one by one."""

    def add(self, row: PairRow, seen: Seen) -> None: ...


class Format(ABC):
    """A format that pairs are written in."""

    name: ClassVar[str]
    title: ClassVar[str]

    def seen_of(self, row: PairRow, shelf: Shelf) -> Seen:
        """A pair as the tool sees it. Raises Unfit."""
        return seen_of(row, shelf.media_of)

    @abstractmethod
    def check(self, seen: Seen) -> None:
        """Raises Unfit for a pair that the tool cannot be told of."""

    def put_media(self, row: PairRow, seen: Seen, shelf: Shelf, folder: Path) -> None:
        """Put the media of a pair into `folder` where copies are made, and what came as bytes always. Raises Unfit."""
        for medium in seen.media:
            if shelf.copies or medium.content is not None:
                shelf.copy(medium, folder)

    @abstractmethod
    def writer(self, folder: Path, survey: Survey, shelf: Shelf) -> AbstractContextManager[Writer]:
        """What writes rows into `folder`."""


class Reader(Protocol):
    """How rows of a format are read. `knows` looks at the first one."""

    name: ClassVar[str]

    def knows(self, row: Row) -> bool:
        """Whether a row looks like one of this format."""

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows, and what it carries along. Raises Unfit."""


class Lines:
    """A text file of one JSON row a line, or of one array of them."""

    def __init__(self, path: Path, *, array: bool) -> None:
        self._path, self._array = path, array

    def __enter__(self) -> Self:
        self._stream = self._path.open("x", encoding="utf-8", newline="\n")
        self._num = 0
        return self

    def write(self, text: str) -> None:
        """Add a row as JSON text."""
        before = ("[\n", ",\n") if self._array else ("", "\n")
        self._stream.write(before[self._num > 0] + text)
        self._num += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._stream.write(("\n" if self._num else "[" * self._array) + "]\n" * self._array)
        self._stream.close()


class Table:
    """A Parquet file of one schema. Rows are written in groups of `most_rows`, or earlier when they grow large."""

    def __init__(self, path: Path, schema: pa.Schema, most_rows: int = 5000, most_bytes: int = 64 << 20) -> None:
        self._path, self._schema = path, schema
        self._most_rows, self._most_bytes = most_rows, most_bytes

    def __enter__(self) -> Self:
        self._stream = self._path.open("xb")
        self._file = pq.ParquetWriter(self._stream, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._bytes = 0
        return self

    def add(self, row: Mapping[str, Any], num_bytes: int = 0) -> None:
        """Add a row; `num_bytes` says how large its media are."""
        self._rows.append(dict(row))
        self._bytes += num_bytes
        if len(self._rows) >= self._most_rows or self._bytes >= self._most_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._file.close()
            self._stream.close()


def texts_of(row: Row, *names: str) -> list[str]:
    """The paths of the first column of these that is there: a list, or one alone. Raises Unfit."""
    value: Any = next((row[name] for name in names if row.get(name) is not None), [])
    listed = value if isinstance(value, list) else [value]
    for entry in listed:
        if not isinstance(entry, str):
            raise Unfit(f"{names[0]} holds {entry!r:.60}; it must hold paths")
    return list(listed)
