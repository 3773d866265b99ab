"""Pair files of one's own: JSON lines with columns of `PairRow`, of which only `context` must be there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign.errors import StoreError
from mmalign.jsontext import numbered_lines, parse_json
from mmalign.pairs.row import PairRow
from mmalign.sides import is_span
from mmalign.types import Row

#: Columns of JSON lines that hold no JSON, and what they hold.
_PLAIN: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "sample_id", "method", "source", "chosen", "rejected"), (str,)),
    **dict.fromkeys(("p", "weight", "gap"), (int, float)),
    **dict.fromkeys(("round", "stage", "seed"), (int,)),
}
_JSON = ("context", "rejected_context", "judgements", "provenance", "values", "sides")


def read_lines(path: Path) -> Iterator[PairRow]:
    """The rows of a file of JSON lines. Raises StoreError with file:line."""
    for place, (number, text) in enumerate(numbered_lines(path, StoreError)):
        try:
            yield pair_of_json(parse_json(text), place)
        except ValueError as error:
            raise StoreError(f"{path}:{number}: {error}") from None


def pair_to_json(row: PairRow) -> Row:
    """A row as JSON values, for a line of JSON; `pair_of_json` reads them back."""
    values = row.to_row()
    columns = {name: value for name, value in values.items() if name in _PLAIN or name.endswith("_spans")}
    return columns | {name: json.loads(values[name]) for name in _JSON if values[name] is not None}


def pair_of_json(given: Any, place: int = 0) -> PairRow:
    """A row from the values of a JSON line. Raises ValueError, one line, for what it should not hold.

    Without an id it is called after its `place` in the file.
    """
    if not isinstance(given, dict) or "context" not in given:
        raise ValueError(f"{given!r:.60} is no pair; it must be an object with context, chosen, rejected, ...")
    spans = {name: given.get(name, []) for name in ("chosen_spans", "rejected_spans")}
    known = (*_PLAIN, *_JSON, *spans, "prompt", "media")
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"unknown column {unknown[0]!r}; known are {', '.join(known)}")
    for name, kinds in _PLAIN.items():
        value = given.get(name)
        if (
            name in given
            and (not isinstance(value, kinds) or isinstance(value, bool))
            and (name, value) != ("gap", None)
        ):
            raise ValueError(f"{name} is {value!r:.60}; it must be {' or '.join(kind.__name__ for kind in kinds)}")
    for name, value in spans.items():
        if not isinstance(value, list) or not all(map(is_span, value)):
            raise ValueError(f"{name} is {value!r:.60}; it must be a list of [start, end] in characters")
    plain = PairRow(
        id=f"own-{place}", sample_id=f"own-{place}", method="own", context=[], chosen="", rejected=""
    ).to_row()
    plain |= {name: given[name] for name in _PLAIN if name in given} | spans
    return PairRow.from_row(plain | {name: json.dumps(given[name]) for name in _JSON if given.get(name) is not None})
