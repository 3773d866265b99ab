from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.text.questions import normalised, questions
from mmalign.types import Completion


def parsed(text: str, **more: object) -> list[str]:
    return questions(Completion(text), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "Where is the fish now?",
        "1. Where is the fish now?",
        "- Where is the fish now?",
        "(2) Where is the fish now?",
        "Q1: Where is the fish now?",
        "**Question 3.** Where is the fish now?",
        '  * "Where is the fish now?"  ',
        "1. Q: Where is the fish now?",
    ],
)
def test_marks_before_a_question_are_taken_off(line: str) -> None:
    assert parsed(line) == ["Where is the fish now?"]


@pytest.mark.parametrize(
    "line", ["", "Where is the fish now", "The fish is there now.", "Where is the fish now? At the top.", "Questions:"]
)
def test_what_is_no_question(line: str) -> None:
    assert parsed(line) == []


def test_four_words_are_too_few_and_five_are_enough() -> None:
    assert parsed("What happens at first?\nWhat happens at the start?") == ["What happens at the start?"]
    assert parsed("What happens?", min_words=2) == ["What happens?"]


def test_the_same_question_counts_once_whatever_its_case_and_marks() -> None:
    text = "Where is the fish now?\n2. where is  the FISH, now?\nWhere is the boat now?"
    assert parsed(text) == ["Where is the fish now?", "Where is the boat now?"]


def test_a_line_that_was_cut_off_is_left_out() -> None:
    text = "Where is the fish now?\nWhere is the boat now?"
    assert questions(Completion(text, finish="length")) == ["Where is the fish now?"]


def test_a_word_that_begins_with_q_is_no_mark() -> None:
    assert parsed("Queens are where in this video?") == ["Queens are where in this video?"]


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    found = parsed(text)
    assert len({normalised(question) for question in found}) == len(found)
    assert all(question.endswith("?") and len(question.split()) >= 5 for question in found)
