"""What pairs are read from: a run, a pair file, or data of another tool; told apart by what its first row holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.convert.baggage import row_of
from mmalign.convert.format import Reader
from mmalign.convert.llamafactory import LlamaFactory
from mmalign.convert.papers import RLAIFV, RRPO
from mmalign.convert.records import count_records, data_files, records
from mmalign.convert.seen import Medium, Turn, Unfit
from mmalign.convert.shelf import Shelf
from mmalign.convert.swift import Swift
from mmalign.convert.trl import TRL
from mmalign.errors import DataError, StoreError
from mmalign.media.read import MediaLimits
from mmalign.pairs import REQUIRED, PairRow, iter_pairs
from mmalign.report.files import read_facts
from mmalign.samples import data_folder
from mmalign.tables import opened
from mmalign.types import Row

OWN = "mmalign"
READERS: Mapping[str, type[Reader]] = {reader.name: reader for reader in (TRL, LlamaFactory, Swift, RLAIFV, RRPO)}
#: Files begin like this by their format; the end of a name for bytes of an unknown one.
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


@dataclass(frozen=True, slots=True)
class Found:
    """A pair that was read, and those of its media that lay in the source itself, by name."""

    row: PairRow
    held: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where pairs come from: `files` of one format, whose media paths start from `root`.

    `reader` is None for pairs of our own. `limits` are those that media were opened with, where a run says.
    """

    files: tuple[Path, ...]
    root: Path
    reader: Reader | None = None
    limits: MediaLimits = field(default_factory=MediaLimits)

    @property
    def format(self) -> str:
        return OWN if self.reader is None else self.reader.name

    def total(self) -> int | None:
        """How many rows there are, where that is known without reading them."""
        counts = [count_records(path) for path in self.files]
        return None if None in counts else sum(count for count in counts if count is not None)

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every row: where it stands ("FILE: row 3"), and what makes it a pair, which raises Unfit.

        Raises DataError or StoreError where a file cannot be read.
        """
        for path in self.files:
            if self.reader is None:
                for place, row in enumerate(iter_pairs(path)):
                    yield f"{path}: row {place} (pair {row.id})", _given(Found(row))
            else:
                for place, record in enumerate(records(path)):
                    yield f"{path}: row {place}", self._making(record, place, path)

    def _making(self, record: Row, place: int, path: Path) -> Callable[[], Found]:
        return lambda: self._found(record, place, path)

    def _found(self, record: Row, place: int, path: Path) -> Found:
        assert self.reader is not None
        seen, baggage = self.reader.read(record)
        shelf, held = Shelf(self.root), dict[str, bytes]()
        if baggage is not None:
            seen = baggage.renamed(seen)

        def taken(medium: Medium) -> Medium:
            is_known = baggage is not None and baggage.knows(medium)
            if medium.content is not None:
                medium = medium if is_known else _by_content(medium)
                held[medium.name] = medium.content or b""
                return medium
            return medium if is_known else replace(medium, name=shelf.inward(medium.name))

        seen = seen.with_media(taken)
        if baggage is not None:
            return Found(baggage.restored(seen), held)
        name = f"{path.stem}-{place}" if len(self.files) == 1 else f"{path.parent.name}-{path.stem}-{place}"
        other = seen.rejected_turns
        row = PairRow(
            id=name,
            sample_id=name,
            method=self.reader.name,
            context=_context(seen.turns),
            rejected_context=None if other is None else _context(other),
            chosen=seen.chosen,
            rejected=seen.rejected,
        )
        return Found(replace(row, **told_of(self.reader, record)), held)


def told_of(reader: Reader, record: Row) -> dict[str, Any]:
    """Further fields of a pair, where the format has some. Raises Unfit."""
    return reader.told(record) if isinstance(reader, RLAIFV | RRPO) else {}


def open_source(source: Path, given: str = "auto", media_root: Path | None = None) -> Source:
    """What `source` is: a run directory, a pair file, or a file or folder of another tool's.

    `given` names the format, "auto" looks. Raises DataError, one line, where there is nothing to read, for what looks
    like no format or like several, and StoreError for a run without pairs.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if (source / "recipe.yaml").is_file():
        if given not in ("auto", OWN):
            raise DataError(f"{source}: is a run directory; --from {given} does not fit, leave it out")
        files = sorted(source.glob("round-*/pairs.parquet"), key=lambda path: (len(path.parent.name), path.parent.name))
        if not files:
            raise StoreError(f"{source}: the run has no finished pairs; `mmalign generate RECIPE` makes them")
        facts = read_facts(source)
        return Source(tuple(files), media_root or facts.data_root(source), limits=facts.limits())
    if given in ("auto", LlamaFactory.name) and (described := LlamaFactory.described(source)) is not None:
        path, reader = described
        return Source((path,), media_root or path.parent, reader)
    files = data_files(source)
    named = None if given in ("auto", OWN) else READERS[given]()
    told = _looked_at(files[0]) if given == "auto" else named
    root = media_root or (data_folder(files[0]) if told is None else files[0].parent)
    return Source(tuple(files), root, told)


def _looked_at(path: Path) -> Reader | None:
    if path.suffix == ".parquet":
        with opened(path, DataError) as file:
            if set(REQUIRED) <= set(file.schema_arrow.names):
                return None
    first = next(islice(records(path), 1), None)
    if first is None:
        raise DataError(f"{path}: holds no rows, so its format cannot be told; give --from")
    fits: list[Reader | None] = [reader for kind in READERS.values() if (reader := kind()).knows(first)]
    if isinstance(first.get("context"), list):
        fits.append(None)
    if len(fits) == 1:
        return fits[0]
    names = [OWN if fit is None else fit.name for fit in fits]
    if not fits:
        raise DataError(
            f"{path}: its first row ({', '.join(list(first)[:8])}) looks like no known format; "
            f"--from takes {', '.join((*READERS, OWN))}"
        )
    raise DataError(f"{path}: its first row looks like {' and '.join(names)}; give --from")


def _given(found: Found) -> Callable[[], Found]:
    return lambda: found


def _context(turns: Sequence[Turn]) -> list[Row]:
    return [{"role": turn.role, "content": [row_of(part) for part in turn.parts]} for turn in turns]


def _by_content(medium: Medium) -> Medium:
    """A medium that lay in a row as bytes, called after them: one name in other tools' rows may mean several files."""
    if not medium.content:
        raise Unfit("holds a picture of 0 bytes")
    digest = hashlib.sha256(medium.content).hexdigest()
    start = medium.content[:4]
    ending = next((ending for first, ending in _ENDINGS.items() if start.startswith(first)), ".img")
    name = f"media/{digest[:24]}{ending}"
    return replace(medium, name=name, part={"type": medium.kind, "path": name, "sha256": digest})
