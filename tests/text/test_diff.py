from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.text.diff import changed_spans, phrase_spans

TEXTS = st.lists(st.sampled_from("a red dog sits . , on cat mat 9 é".split()), max_size=12).map(" ".join)


def test_changed_words_by_offset() -> None:
    a, b = "A red dog sits here.", "A blue cat sits  here, too."
    spans_a, spans_b = changed_spans(a, b)
    assert [a[s:e] for s, e in spans_a] == ["red dog"]
    assert [b[s:e] for s, e in spans_b] == ["blue cat", ", too"]


def test_white_space_alone_is_no_change() -> None:
    assert changed_spans("a  dog\n", "a dog") == ((), ())


def test_nothing_in_common_and_empty() -> None:
    assert changed_spans("one two", "three") == (((0, 7),), ((0, 5),))
    assert changed_spans("", "x") == ((), ((0, 1),))


def without(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    for start, end in reversed(spans):
        text = text[:start] + " " + text[end:]
    return text.split()


@given(TEXTS, TEXTS)
def test_what_is_left_is_equal_and_spans_are_ordered(a: str, b: str) -> None:
    spans_a, spans_b = changed_spans(a, b)
    assert without(a, spans_a) == without(b, spans_b)
    for text, spans in ((a, spans_a), (b, spans_b)):
        flat = [edge for span in spans for edge in span]
        assert flat == sorted(flat)
        assert all(0 <= start < end <= len(text) for start, end in spans)


@given(TEXTS, TEXTS)
def test_both_directions_agree_on_equality(a: str, b: str) -> None:
    assert (changed_spans(a, b) == ((), ())) == (a.split() == b.split())


@pytest.mark.parametrize(
    ("a", "b", "in_a", "in_b"),
    [
        ("A red dog sits.", "A blue dog sits.", ["red"], ["blue"]),
        ("A red dog sits.", "A dog sits.", ["A red"], ["A"]),
        ("A dog. It runs.", "A dog.", ["dog. It runs."], ["dog."]),
        ("A dog.", "Oh A dog.", ["A"], ["Oh A"]),
        ("A big dog sits.", "A cat sits here.", ["big dog sits"], ["cat sits here"]),
        ("", "x y", [], ["x y"]),
        ("!", "! x", [], ["x"]),
        ("same", "same", [], []),
    ],
)
def test_phrases(a: str, b: str, in_a: list[str], in_b: list[str]) -> None:
    spans_a, spans_b = phrase_spans(a, b)
    assert [a[s:e] for s, e in spans_a] == in_a
    assert [b[s:e] for s, e in spans_b] == in_b


def test_long_texts_of_frequent_words_are_not_guessed_at() -> None:
    """The popularity heuristic of difflib would mark everything after the change."""
    a, b = ("the " * 300 + last + " the" * 20 for last in ("cat", "dog"))
    assert phrase_spans(a, b) == (((1200, 1203),), ((1200, 1203),))


@given(TEXTS, TEXTS)
def test_phrases_hold_every_change_and_mark_both_texts(a: str, b: str) -> None:
    changed, phrases = changed_spans(a, b), phrase_spans(a, b)
    for inner, outer, text in zip(changed, phrases, (a, b), strict=True):
        assert all(any(low <= start and end <= high for low, high in outer) for start, end in inner)
        flat = [edge for span in outer for edge in span]
        assert flat == sorted(flat)
        assert all(text[start:end].strip() == text[start:end] != "" for start, end in outer)
    assert bool(phrases[0] or phrases[1]) == (a.split() != b.split())
    words = set(a.split()) & set(b.split()) - {".", ","}
    if a.split() != b.split() and words:
        assert phrases[0]
        assert phrases[1]
