"""What a pair carries beside its two texts: further answers by name, in contexts of their own, and numbers by name.

Both are nested lists of at most two levels: one answer, K answers, or lists of lists of them; a number, K numbers, or a
matrix. None stands where a pair has no such answer or number. Their JSON is read here, with a clear line for what is
wrong in it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar, get_args

from mmalign.types import Answer, Answers, Role, Row

T = TypeVar("T")
Nested: TypeAlias = "T | tuple[Nested[T], ...] | None"

#: Lists of lists are the deepest.
MAX_DEPTH = 2
#: Names that pairs have columns of their own for.
_COLUMNS = {"side": ("chosen", "rejected"), "value": ("gap", "p", "weight")}
_ANSWER = 'an answer {"text": ..., "context": turns or null}'


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """An answer on disk. `context` is a list of turns as written by `Chat.to_rows`; None means the pair's own.

    `spans` are half-open character ranges of the text that differ in content.
    """

    text: str
    context: list[Row] | None = None
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, answer: Answer) -> AnswerRow:
        """The row of an answer that a method gave."""
        context = None if answer.context is None else answer.context.to_rows()
        return cls(text=answer.completion.text, context=context, spans=answer.spans)

    def to_row(self) -> Row:
        """As JSON values."""
        row: Row = {"text": self.text, "context": self.context}
        return {**row, "spans": [list(span) for span in self.spans]} if self.spans else row


#: One answer, none, or nested tuples of either.
SideRow: TypeAlias = "Nested[AnswerRow]"
#: A number, none, or nested tuples of either.
ValueRow: TypeAlias = "Nested[float]"


def side_of(answers: Answers) -> SideRow:
    """The row of what a method gave under one name."""
    if answers is None:
        return None
    return AnswerRow.of(answers) if isinstance(answers, Answer) else tuple(map(side_of, answers))


def nested(part: Any) -> Any:
    """Tuples for lists, however deep: what callers write either way compares equal."""
    return tuple(map(nested, part)) if isinstance(part, list | tuple) else part


def shape_of(parts: Sequence[Nested[T]]) -> tuple[int, ...]:
    """The longest lists among some pairs' sides or values, level by level; () where there are no lists."""
    lists = [part for part in parts if isinstance(part, tuple)]
    if not lists:
        return ()
    return max(map(len, lists)), *shape_of([inner for part in lists for inner in part])


def laid_out(part: Nested[T], shape: Sequence[int]) -> list[T | None]:
    """All places of a side or a value that is filled up to `shape`, last axis fastest; None where there is nothing."""
    if not shape:
        assert not isinstance(part, tuple)
        return [part]
    inner = [place for each in (part if isinstance(part, tuple) else ()) for place in laid_out(each, shape[1:])]
    return inner + [None] * (math.prod(shape) - len(inner))


# JSON ----------------------------------------------------------------------------------------------------------------


def to_json(part: Nested[Any], leaf: Callable[[Any], Any]) -> Any:
    """Lists for tuples, and what `leaf` makes of what is in them."""
    if part is None:
        return None
    return [to_json(inner, leaf) for inner in part] if isinstance(part, tuple) else leaf(part)


def read_sides(value: Any) -> dict[str, SideRow]:
    """Sides from JSON values. Raises ValueError, one line, naming what is wrong and what would be right."""
    return {name: _read(part, f"sides: {name}", _answer) for name, part in _named(value, "side")}


def read_values(value: Any) -> dict[str, ValueRow]:
    """Values from JSON values. Raises ValueError, one line, naming what is wrong and what would be right."""
    return {name: _read(part, f"values: {name}", _number) for name, part in _named(value, "value")}


def read_turns(value: Any, where: str) -> list[Row]:
    """The turns of a context from JSON values. Raises ValueError, one line, for anything else."""
    if not isinstance(value, list) or not all(map(_is_turn, value)):
        raise ValueError(f'{where} is {value!r:.60}; it must be a list of turns {{"role": ..., "content": [parts]}}')
    return value


def _named(value: Any, kind: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind}s is {value!r:.60}; it must map names to what is called so")
    for name in value:
        if not name or name in _COLUMNS[kind]:
            raise ValueError(f"{kind}s: {name!r} cannot be a name here; pairs have a column {name!r}")
    return list(value.items())


def _read(value: Any, where: str, leaf: Callable[[Any, str], T], depth: int = MAX_DEPTH) -> Nested[T]:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        return leaf(value, where)
    if not value or not depth:
        raise ValueError(f"{where} is {value!r:.60}; lists hold one or more, and lists of lists are the deepest")
    found = tuple(_read(inner, f"{where}[{place}]", leaf, depth - 1) for place, inner in enumerate(value))
    if depth == MAX_DEPTH and len({isinstance(inner, tuple) for inner in found if inner is not None}) > 1:
        raise ValueError(f"{where} holds lists beside what is no list; it must be one or the other")
    return found


def _answer(value: Any, where: str) -> AnswerRow:
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise ValueError(f"{where} is {value!r:.60}; it must be {_ANSWER}, a list of answers, or null for none")
    if unknown := sorted(set(value) - {"text", "context", "spans"}):
        raise ValueError(f"{where} has the key {unknown[0]!r}; {_ANSWER} may have spans, and nothing else")
    context, spans = value.get("context"), value.get("spans", [])
    if not isinstance(spans, list) or not all(map(is_span, spans)):
        raise ValueError(f"{where}.spans is {spans!r:.60}; it must be a list of [start, end] in characters")
    turns = None if context is None else read_turns(context, f"{where}.context")
    return AnswerRow(text=value["text"], context=turns, spans=tuple((start, end) for start, end in spans))


def _number(value: Any, where: str) -> float:
    if not is_finite(value):
        raise ValueError(f"{where} is {value!r:.60}; it must be a finite number, a list of numbers, or null for none")
    found: float = value
    return found


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("role") in get_args(Role) and _is_content(value.get("content"))


def _is_content(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_part, value))


def _is_part(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    if value.get("type") == "text":
        return isinstance(value.get("text"), str)
    return value.get("type") in ("image", "video") and is_reference(value)


def is_reference(value: Mapping[str, Any]) -> bool:
    """Whether JSON values are those of a reference to media, as `MediaRef.from_row` takes them."""
    corruptions, frames = value.get("corruptions", []), value.get("frames")
    return (
        isinstance(value.get("path"), str)
        and isinstance(value.get("sha256", ""), str)
        and isinstance(corruptions, list)
        and all(map(_is_corruption, corruptions))
        and ("frames" not in value or _is_frames(frames))
    )


def _is_corruption(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and isinstance(value.get("name"), str) and isinstance(value.get("params"), Mapping)
    )


def _is_frames(value: Any) -> bool:
    """Frames ascend, each once, and there are no more of them than the video has."""
    if not isinstance(value, Mapping):
        return False
    numbers, times, total = value.get("numbers"), value.get("times"), value.get("total")
    return (
        isinstance(numbers, list)
        and isinstance(times, list)
        and 0 < len(numbers) == len(times)
        and all(type(number) is int for number in (*numbers, total))
        and all(map(is_finite, (*times, value.get("fps"))))
        and isinstance(value.get("backend", ""), str)
        and all(one < two for one, two in pairwise((-1, *numbers, total)))
    )


def is_finite(value: Any) -> bool:
    """Whether a JSON value is a number that a float can be; whole numbers may be of any size."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -sys.float_info.max <= value <= sys.float_info.max
    )


def is_span(value: Any) -> bool:
    """Whether a JSON value is [start, end], in numbers that a pair file has room for."""
    return isinstance(value, list) and len(value) == 2 and all(type(end) is int and abs(end) < 2**31 for end in value)
