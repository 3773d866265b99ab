"""The content of media, recorded in pairs that name files by their path alone.

What is computed of a file is kept and found again by its SHA-256. A file of which only the path is known may be another
one in the next run, so all is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import MediaError
from mmalign.media.files import safe_path
from mmalign.media.image import file_sha256
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow
from mmalign.types import Row


def with_sha256(rows: Sequence[PairRow], root: Path) -> list[PairRow]:
    """The rows, with the SHA-256 of all files below `root` that they name without one.

    A file that cannot be read stays as it is: opening it says what is wrong.
    """

    @cache
    def sum_of(path: str) -> str | None:
        try:
            file = safe_path(root, path)
            # A pipe would be waited for without end.
            return file_sha256(file) if file.is_file() else None
        except (MediaError, OSError):
            return None

    def part_of(part: Row) -> Row:
        if not isinstance(part.get("path"), str) or part.get("sha256"):
            return part
        found = sum_of(part["path"])
        return part if found is None else {**part, "sha256": found}

    def turns_of(turns: list[Row] | None) -> Any:
        return turns and [{**turn, "content": [part_of(part) for part in turn["content"]]} for turn in turns]

    def side_of(side: Any) -> Any:
        if isinstance(side, tuple):
            return tuple(map(side_of, side))
        return replace(side, context=turns_of(side.context)) if isinstance(side, AnswerRow) else side

    return [
        replace(
            row,
            context=turns_of(row.context),
            rejected_context=turns_of(row.rejected_context),
            sides={name: side_of(side) for name, side in row.sides.items()},
        )
        for row in rows
    ]
