"""mmalign's own pair file, as the end of a conversion: `pairs.parquet`, and beside it the media that came along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from mmalign.convert.format import Format, Survey, Table, Writer
from mmalign.convert.seen import Medium, Seen, Unfit, seen_of
from mmalign.convert.shelf import Shelf
from mmalign.pairs import SCHEMA, PairRow
from mmalign.types import Row

FILE = "pairs.parquet"


class Own(Format):
    """The format. Every pair fits; media that are not there are found when they are opened."""

    name: ClassVar[str] = "mmalign"
    title: ClassVar[str] = "mmalign"

    def seen_of(self, row: PairRow, shelf: Shelf) -> Seen:
        """The pair as it is: nothing is drawn. Raises Unfit for media that would leave the data folder."""
        for part in _media_parts(row):
            if not shelf.has(part["path"]) and shelf.copies:
                raise Unfit(f"{part['path']}: no such file below {shelf.root}; name the folder with --media-root")
        return seen_of(row, lambda part: [_medium(part, shelf)])

    def check(self, seen: Seen) -> None:
        """Nothing is refused."""

    def put_media(self, row: PairRow, seen: Seen, shelf: Shelf, folder: Path) -> None:
        """Copy the files of all contexts where copies are made; write what came as bytes always."""
        for medium in (_medium(part, shelf) for part in _media_parts(row)):
            if shelf.copies or medium.content is not None:
                shelf.copy(medium, folder)

    @contextmanager
    def writer(self, folder: Path, survey: Survey, shelf: Shelf) -> Iterator[Writer]:
        """Writes `pairs.parquet`."""
        with Table(folder / FILE, SCHEMA) as table:
            yield _OwnWriter(table)


def _media_parts(row: PairRow) -> Iterator[Row]:
    """The media of all contexts, those of further answers among them."""
    return (part for context in row.contexts for turn in context for part in turn["content"] if part["type"] != "text")


def _medium(part: Row, shelf: Shelf) -> Medium:
    return Medium(part["type"], part["path"], content=shelf.held.get(part["path"]), part=part)


class _OwnWriter:
    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, row: PairRow, seen: Seen) -> None:
        self._table.add(row.to_row())
