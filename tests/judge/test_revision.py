from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.judge.revision import Critic, error_kinds, finds_no_error, length_ratio, similarity, talks_of_itself
from mmalign.types import Completion, Sampling


def critic(**settings: object) -> Critic:
    return Critic(greedy=Sampling(), drawn=Sampling(0.7), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["No error.", "no error", "**No errors.**", "No error found!", "There is no error.\n"])
def test_a_critique_that_finds_nothing(text: str) -> None:
    assert finds_no_error(text)


@pytest.mark.parametrize(
    "text", ["", "factual: no error is made here", "No error.\nfactual: it is a cat", "The error is obvious."]
)
def test_a_critique_that_finds_something(text: str) -> None:
    assert not finds_no_error(text)


def test_kinds_of_errors_in_order() -> None:
    text = (
        "1. Temporal order: the cat comes first\n- factual: it is red\nIt is wrong.\n**Omission** a dog\nfactual - two"
    )
    assert error_kinds(text) == ["temporal order", "factual", "omission", "factual"]
    assert error_kinds("") == []


@pytest.mark.parametrize(
    "text",
    [
        "As the critique says, it is red.",
        "The previous answer was wrong: it is red.",
        "Corrected answer: it is red.",
        "I apologize, it is red.",
        "Here is the answer without these errors: red.",
    ],
)
def test_answers_that_talk_of_themselves(text: str) -> None:
    assert talks_of_itself(text)


@pytest.mark.parametrize(
    "text",
    ["The man answers the phone first.", "She gives a critical look.", "The first man responds to the previous one."],
)
def test_answers_about_the_video(text: str) -> None:
    assert not talks_of_itself(text)


def test_similarity_by_words_in_order() -> None:
    assert similarity("a red dog runs", "A red cat runs") == 0.75
    assert similarity("a b", "b a") == 0.5
    assert similarity("same words", "same  words") == 1.0


@given(st.text(), st.text())
def test_similarity_lies_between_none_and_all(a: str, b: str) -> None:
    assert 0 <= similarity(a, b) <= 1
    assert similarity(a, a) == 1


def test_length_in_words() -> None:
    assert length_ratio("one two three", "one two") == 1.5


W19 = " ".join(f"w{number}" for number in range(19))
W20 = f"{W19} w19"


@pytest.mark.parametrize(
    ("first", "last", "reason"),
    [
        ("It is a red dog.", "it is a RED dog", "both answers are equal"),
        (f"{W19} x", W20, ""),  # 19 of 20 words: exactly .95
        (f"{W19} w20 x", f"{W19} w20 y", "both answers are too similar"),  # 20 of 21
        ("one two three four", "five six", ""),  # exactly half as long
        ("one two three four five", "six seven", "the answers differ too much in length"),
        ("one two", "three four five six", ""),  # exactly twice
        ("one two", "three four five six seven", "the answers differ too much in length"),
        ("It is red.", "The previous answer is false.", "the corrected answer speaks of itself"),
        ("It is red.", " ", "the corrected answer is empty"),
    ],
)
def test_filters_at_their_boundaries(first: str, last: str, reason: str) -> None:
    assert critic().why_not(first, Completion(last)) == reason


def test_each_filter_can_be_switched_off() -> None:
    assert critic(max_similarity=1.0).why_not(f"{W19} w20 x", Completion(f"{W19} w20 y")) == ""
    assert critic(length_ratio=(0.0, 9.0)).why_not("one two three four five", Completion("six seven")) == ""
    assert critic(drop_talk=False).why_not("It is red.", Completion("The previous answer is false.")) == ""


def test_a_corrected_answer_that_was_cut_off_is_refused() -> None:
    assert "cut off" in critic().why_not("It is red.", Completion("It is so", finish="length"))
