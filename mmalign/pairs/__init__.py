"""Pairs on disk: the one thing that methods and training share.

A pair file is Parquet with the columns of `SCHEMA`; contexts, judgements, provenance, further answers and numbers are
JSON text, so any tool reads them. JSON lines are read, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmalign.errors import StoreError
from mmalign.pairs.jsonlines import pair_of_json, pair_to_json, read_lines
from mmalign.pairs.row import PairRow
from mmalign.pairs.table import REQUIRED, SCHEMA, read_table, write_pairs, write_rows

__all__ = [
    "REQUIRED",
    "SCHEMA",
    "PairRow",
    "iter_pairs",
    "pair_of_json",
    "pair_to_json",
    "read_pairs",
    "write_pairs",
    "write_rows",
]


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
    yield from read_lines(path) if path.suffix == ".jsonl" else read_table(path)
