"""A pair as one row of plain values, and what its numbers and its JSON columns must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmalign.jsontext import parse_json
from mmalign.sides import (
    AnswerRow,
    SideRow,
    ValueRow,
    is_finite,
    is_span,
    laid_out,
    nested,
    read_sides,
    read_turns,
    read_values,
    shape_of,
    side_of,
    to_json,
)
from mmalign.types import MediaRef, Pair, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One row of a pair file. `context` is a list of turns as written by `Chat.to_rows`.

    `sides` holds further answers by name and `values` further numbers (`mmalign.sides`).
    """

    id: str
    sample_id: str
    method: str
    context: list[Row]
    chosen: str
    rejected: str
    round: int = 0
    source: str = ""
    rejected_context: list[Row] | None = None
    p: float = 1.0
    weight: float = 1.0
    gap: float | None = None
    stage: int = 0
    chosen_spans: tuple[tuple[int, int], ...] = ()
    rejected_spans: tuple[tuple[int, int], ...] = ()
    judgements: list[Row] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    values: Mapping[str, ValueRow] = field(default_factory=dict)
    sides: Mapping[str, SideRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lists among sides and values count as tuples."""
        for name in ("sides", "values"):
            parts = {key: nested(part) for key, part in getattr(self, name).items()}
            object.__setattr__(self, name, parts)

    @classmethod
    def of(cls, pair: Pair, *, sample_id: str, index: int, method: str, round: int, seed: int) -> PairRow:
        """The row of a pair that a method made; `index` counts the pairs of one sample."""
        return cls(
            id=f"{sample_id}#{round}.{index}",
            sample_id=sample_id,
            method=method,
            round=round,
            source=pair.source,
            context=pair.context.to_rows(),
            rejected_context=None if pair.rejected_context is None else pair.rejected_context.to_rows(),
            chosen=pair.chosen.text,
            rejected=pair.rejected.text,
            p=pair.p,
            weight=pair.weight,
            gap=pair.gap,
            stage=pair.stage,
            chosen_spans=pair.chosen_spans,
            rejected_spans=pair.rejected_spans,
            judgements=[judgement.to_row() for judgement in pair.judgements],
            provenance=dict(pair.provenance),
            seed=seed,
            values=read_values(pair.values),
            sides={name: side_of(answers) for name, answers in pair.sides.items()},
        )

    def side(self, name: str) -> SideRow:
        """The answers called `name`, "chosen" and "rejected" among them; KeyError where the pair carries none."""
        if name == "chosen":
            return AnswerRow(text=self.chosen, spans=self.chosen_spans)
        if name == "rejected":
            return AnswerRow(text=self.rejected, context=self.rejected_context, spans=self.rejected_spans)
        return self.sides[name]

    def value(self, name: str) -> ValueRow:
        """The numbers called `name`, "gap" among them; KeyError where the pair carries none."""
        return self.gap if name == "gap" else self.values[name]

    @property
    def contexts(self) -> list[list[Row]]:
        """The contexts of all its answers, the pair's own first."""
        further = [flat for side in self.sides.values() for flat in laid_out(side, shape_of([side]))]
        others = [self.rejected_context, *(answer.context for answer in further if answer is not None)]
        return [self.context, *(context for context in others if context is not None)]

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """The media of the context, in order."""
        return tuple(
            MediaRef.from_row(part) for turn in self.context for part in turn["content"] if part["type"] != "text"
        )

    @property
    def prompt(self) -> str:
        """The text of the last user turn."""
        for turn in reversed(self.context):
            if turn["role"] == "user":
                return "".join(part["text"] for part in turn["content"] if part["type"] == "text")
        return ""

    def to_row(self) -> Row:
        """Values for one Parquet row of `table.SCHEMA`; equal pairs give equal bytes."""
        return {
            "id": self.id,
            "sample_id": self.sample_id,
            "method": self.method,
            "round": self.round,
            "source": self.source,
            "prompt": self.prompt,
            "media": [ref.path for ref in self.media],
            "chosen": self.chosen,
            "rejected": self.rejected,
            "p": self.p,
            "weight": self.weight,
            "gap": self.gap,
            "stage": self.stage,
            "chosen_spans": [list(span) for span in self.chosen_spans],
            "rejected_spans": [list(span) for span in self.rejected_spans],
            "context": _json(self.context),
            "rejected_context": None if self.rejected_context is None else _json(self.rejected_context),
            "judgements": _json(self.judgements),
            "provenance": _json(dict(self.provenance)),
            "seed": self.seed,
            "values": _json({name: to_json(value, float) for name, value in self.values.items()}),
            "sides": _json({name: to_json(side, AnswerRow.to_row) for name, side in self.sides.items()}),
        }

    @classmethod
    def from_row(cls, row: Row) -> PairRow:
        """The inverse of `to_row`; the derived columns `prompt` and `media` are not read.

        Raises ValueError, one line, for numbers and JSON columns that do not hold what they should.
        """
        _check_numbers(row)
        other = _parsed(row, "rejected_context")
        return cls(
            id=row["id"],
            sample_id=row["sample_id"],
            method=row["method"],
            round=row["round"],
            source=row["source"],
            context=read_turns(_parsed(row, "context"), "context"),
            rejected_context=None if other is None else read_turns(other, "rejected_context"),
            chosen=row["chosen"],
            rejected=row["rejected"],
            p=float(row["p"]),
            weight=float(row["weight"]),
            gap=None if row["gap"] is None else float(row["gap"]),
            stage=row["stage"],
            chosen_spans=_spans(row, "chosen_spans"),
            rejected_spans=_spans(row, "rejected_spans"),
            judgements=_judgements(_parsed(row, "judgements")),
            provenance=_provenance(_parsed(row, "provenance")),
            seed=row["seed"],
            values=read_values(_parsed(row, "values") or {}),
            sides=read_sides(_parsed(row, "sides") or {}),
        )


#: Columns of whole numbers, and their bits.
_BITS = {"round": 31, "stage": 31, "seed": 63}


def _check_numbers(row: Row) -> None:
    """Raises ValueError, one line, for a label that is no probability and for weights and gaps that scale nothing."""
    allowed = {
        "p": (0 <= row["p"] <= 1, "a probability, from 0 to 1"),
        "weight": (row["weight"] >= 0 and is_finite(row["weight"]), "a finite number, 0 or more"),
        "gap": (row["gap"] is None or is_finite(row["gap"]), "a finite number, or null for none"),
        **{name: (abs(row[name]) < 2**bits, f"a whole number below 2**{bits}") for name, bits in _BITS.items()},
    }
    for name, (holds, told) in allowed.items():
        if not holds:
            raise ValueError(f"{name} is {row[name]!r:.60}; it must be {told}")


def _parsed(row: Row, column: str) -> Any:
    """The JSON value of a column; None where there is none."""
    text = row.get(column)
    try:
        return None if text is None else parse_json(text)
    except ValueError as error:
        raise ValueError(f"{column} is {text!r:.60}; it {error}") from None


def _spans(row: Row, column: str) -> tuple[tuple[int, int], ...]:
    if not all(map(is_span, row[column])):
        raise ValueError(f"{column} is {row[column]!r:.60}; it must be a list of [start, end] in characters")
    return tuple((start, end) for start, end in row[column])


def _judgements(value: Any) -> list[Row]:
    def is_judgement(entry: Any) -> bool:
        return isinstance(entry, Mapping) and not (_is_number(entry.get("value")) and not is_finite(entry["value"]))

    if not isinstance(value, list) or not all(map(is_judgement, value)):
        raise ValueError(f"judgements is {value!r:.60}; it must be a list of objects with judge, value and reason")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _provenance(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"provenance is {value!r:.60}; it must be an object")
    return value


#: Made once: `json.dumps` with options makes an encoder for each call, and a row has five such columns.
_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode
