"""Which words two texts do not share, as character ranges of each."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

Span = tuple[int, int]


def changed_spans(a: str, b: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Half-open ranges of the words of `a` that `b` lacks, and the other way round.

    Words and punctuation marks are the units; neighbouring changed units become one range. White space never counts.
    """
    in_a, in_b = ([(found[0], found.span()) for found in re.finditer(r"\w+|[^\w\s]", text)] for text in (a, b))
    matcher = SequenceMatcher(None, [word for word, _ in in_a], [word for word, _ in in_b], autojunk=False)
    spans_a: list[Span] = []
    spans_b: list[Span] = []
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        if kind == "equal":
            continue
        if a1 > a0:
            spans_a.append((in_a[a0][1][0], in_a[a1 - 1][1][1]))
        if b1 > b0:
            spans_b.append((in_b[b0][1][0], in_b[b1 - 1][1][1]))
    return tuple(spans_a), tuple(spans_b)
