"""The rows of a data source in chunks, each known by a digest: what was read once need not be read again to be known.

A source that is a file or folder is read anew for every pass, so nobody has to hold its rows in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from mmalign.errors import DataError
from mmalign.types import SampleRow

#: Rows in a chunk, at most: of a source that is read anew, and of any other rows, each of which may be work to make.
CHUNK_ROWS = 1000
ROWS_AHEAD = 256


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows that follow each other.

    Args:
        num_rows: How many.
        digest: 16 bytes that hang on all that the rows are made from: equal digests, equal rows. None where it is not
            known.
        rows: Reads the rows, each with its number in the source (a line of a text file). Raises DataError at a bad one.
    """

    num_rows: int
    digest: bytes | None
    rows: Callable[[], Iterator[tuple[int, SampleRow]]]


class SampleRows(Iterable[SampleRow]):
    """The rows of a source, in a fixed order, as often as they are wanted.

    Args:
        chunks: Begins reading.
        name: What messages call the source.
        total: Number of rows, where it is known without reading them.
        limit: Only so many of the first rows.
    """

    def __init__(
        self, chunks: Callable[[], Iterator[Chunk]], *, name: str, total: int | None, limit: int | None
    ) -> None:
        self._chunks = chunks
        self._name = name
        self._limit = limit
        self.total = total if limit is None or total is None else min(total, limit)

    def __iter__(self) -> Iterator[SampleRow]:
        """The rows one by one. Raises DataError for an id given twice."""
        numbers: dict[str, int] = {}
        for number, row in islice((pair for chunk in self._chunks() for pair in chunk.rows()), self._limit):
            if row.id in numbers:
                raise DataError(
                    f"{self._name}:{number}: id {row.id!r} was given in line {numbers[row.id]} already; "
                    "remove one or change its id"
                )
            numbers[row.id] = number
            yield row

    def chunks(self) -> Iterator[Chunk]:
        """The rows in chunks; a chunk that the limit cuts has a digest of its own. Ids are not compared."""
        left = self._limit
        for chunk in self._chunks():
            if left is None:
                yield chunk
                continue
            if left <= 0:
                return
            yield chunk if chunk.num_rows <= left else _cut(chunk, left)
            left -= chunk.num_rows


def _cut(chunk: Chunk, num: int) -> Chunk:
    digest = None if chunk.digest is None else digest_of(chunk.digest, str(num).encode())
    return Chunk(num, digest, lambda: islice(chunk.rows(), num))


def digest_of(*parts: bytes) -> bytes:
    """16 bytes that hang on every part and on where each ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def chunks_of(rows: Iterable[SampleRow]) -> Iterator[Chunk]:
    """Any rows in chunks; only those of `SampleRows` are known by a digest."""
    if isinstance(rows, SampleRows):
        yield from rows.chunks()
        return
    left = enumerate(rows, 1)
    while taken := list(islice(left, ROWS_AHEAD)):
        yield Chunk(len(taken), None, lambda taken=taken: iter(taken))  # type: ignore[misc]
