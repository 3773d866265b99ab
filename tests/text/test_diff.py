from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmalign.text.diff import changed_spans

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
