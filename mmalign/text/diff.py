"""Which words two texts do not share, as character ranges of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

Span = tuple[int, int]


def changed_spans(a: str, b: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Half-open ranges of the words of `a` that `b` lacks, and the other way round.

    Words and punctuation marks are the units; neighbouring changed units become one range. White space never counts.
    """
    in_a, in_b = _units(a), _units(b)
    changes = list(_changes(in_a, in_b))
    spans_a = tuple(_span(in_a, a0, a1) for a0, a1, _, _ in changes if a1 > a0)
    spans_b = tuple(_span(in_b, b0, b1) for _, _, b0, b1 in changes if b1 > b0)
    return spans_a, spans_b


def phrase_spans(a: str, b: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Half-open ranges of the phrases in which `a` and `b` differ, on both sides wherever that is possible.

    A replaced phrase is marked in both texts. Where one text only adds words, the other has nothing to mark, so there
    both ranges begin at the word before, which the texts share; at the start of a text they end with the word behind.
    Phrases that meet become one. Only an empty text, or one without a word to share, has no range. Rule of the RRPO
    objective: Sarkar et al. 2025, arXiv 2504.12083, with added words handled as described here.
    """
    in_a, in_b = _units(a), _units(b)
    ranges_a: list[tuple[int, int]] = []
    ranges_b: list[tuple[int, int]] = []
    for a0, a1, b0, b1 in _changes(in_a, in_b):
        before = after = 0
        if a0 == a1 or b0 == b1:
            before = _to_word([unit for unit, _ in in_a[:a0][::-1]], [unit for unit, _ in in_b[:b0][::-1]])
            if not before:
                after = _to_word([unit for unit, _ in in_a[a1:]], [unit for unit, _ in in_b[b1:]])
        for ranges, start, stop in ((ranges_a, a0 - before, a1 + after), (ranges_b, b0 - before, b1 + after)):
            while ranges and ranges[-1][1] >= start:
                start, stop = min(ranges[-1][0], start), max(ranges.pop()[1], stop)
            if stop > start:
                ranges.append((start, stop))
    return tuple(_span(in_a, *found) for found in ranges_a), tuple(_span(in_b, *found) for found in ranges_b)


def _units(text: str) -> list[tuple[str, Span]]:
    return [(found[0], found.span()) for found in re.finditer(r"\w+|[^\w\s]", text)]


def _changes(in_a: list[tuple[str, Span]], in_b: list[tuple[str, Span]]) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of units (a0, a1, b0, b1) that differ, in order; one of the two may be empty."""
    # difflib's own heuristic leaves out frequent words of long texts.
    matcher = SequenceMatcher(None, [unit for unit, _ in in_a], [unit for unit, _ in in_b], autojunk=False)
    return ((a0, a1, b0, b1) for kind, a0, a1, b0, b1 in matcher.get_opcodes() if kind != "equal")


def _to_word(units_a: Sequence[str], units_b: Sequence[str]) -> int:
    """How many units to take until one of them is a word, while both sequences agree; 0 when none comes."""
    for number, (one, other) in enumerate(zip(units_a, units_b, strict=False), 1):
        if one != other:
            return 0
        if one[0].isalnum() or one[0] == "_":
            return number
    return 0


def _span(units: list[tuple[str, Span]], start: int, stop: int) -> Span:
    return units[start][1][0], units[stop - 1][1][1]
