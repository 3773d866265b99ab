from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import SampleError
from mmalign.judge.reference import agrees, compare, form_of, option_of, options, same_meaning, words
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.types import Chat

ON_LINES = "What is it?\nA. a cat\nB. a red dog\nC. Nothing"
INLINE = "What is it? (A) a cat (B) a red dog (C) Nothing"
OPEN = "The man opens the door and walks out."


def bound(p_yes: float = 0.9, mass: float = 1.0) -> tuple[ScriptedLM, SampleLM]:
    lm = ScriptedLM({}, choose=lambda chat, options: (mass * p_yes, mass * (1 - p_yes)))
    return lm, SampleLM(lm, sample_id="s")


@pytest.mark.parametrize("question", [ON_LINES, INLINE, ON_LINES.replace(". ", ") "), ON_LINES.replace(". ", ": ")])
def test_options_by_letter(question: str) -> None:
    assert options(question) == {"A": "a cat", "B": "a red dog", "C": "Nothing"}


@pytest.mark.parametrize("question", ["What is it?", "What is it?\nA. a cat", "What?\nB. a cat\nC. a dog"])
def test_what_is_no_list_of_options(question: str) -> None:
    assert options(question) == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. a red dog", "B"),
        ("B: a cat", "B"),  # the letter counts
        ("The answer is B because it barks.", "B"),
        ("Answer: A", "A"),
        ("The answer is A man.", None),  # an article
        ("The correct option is (C).", "C"),
        ("A red dog runs.", "B"),  # by its text; "A" is an article
        ("It is a cat.", "A"),
        ("A cat and a red dog.", None),
        ("A horse.", None),
        ("D", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_names(answer: str, letter: str | None) -> None:
    assert option_of(answer, options(ON_LINES)) == letter


@pytest.mark.parametrize(
    ("question", "reference", "form"),
    [
        (ON_LINES, "B", "choice"),
        (ON_LINES, "a red dog", "choice"),
        (ON_LINES, "Something else entirely here", "open"),
        ("Is it red?", "Yes, it is red.", "yes/no"),
        ("Is it red?", "no", "yes/no"),
        ("Is it red?", "No dog in the video is red at all", "yes/no"),
        ("Look at the door. Doesn't he open it?", "No man ever opens it here", "yes/no"),
        ("What of it? Answer yes or no.", "No man ever opens it here", "yes/no"),
        ("What happens?", "No.", "yes/no"),
        ("What happens?", "Yes, he opens it and walks out.", "yes/no"),
        ("What happens?", "no - he walks out of the room", "yes/no"),
        ("What happens?", "No one opens the door.", "open"),
        ("What happens?", "No-one opens the big door.", "open"),
        ("Can you tell what happens?", "No one opens the door.", "open"),
        ("Where is it?", "No idea", "short"),
        ("How many?", "Three", "short"),
        ("What?", "The big red dog", "short"),
        ("What?", "the big red dog runs", "open"),
        ("What?", OPEN, "open"),
        ("What?", "!?", "open"),
    ],
)
def test_the_form_of_a_reference(question: str, reference: str, form: str) -> None:
    assert form_of(question, reference) == form


@pytest.mark.parametrize(
    ("question", "reference", "answer", "right"),
    [
        (ON_LINES, "B", "B. a red dog", True),
        (ON_LINES, "B. a red dog", "a red dog", True),
        (ON_LINES, "B", "A", False),
        (ON_LINES, "B", "I do not know.", None),
        ("Is it?", "Yes.", "yes, it is", True),
        ("Is it?", "Yes.", "No, it is not.", False),
        ("Is it?", "no", "It is not.", None),
        ("How many?", "three", "3", True),
        ("How many?", "3", "There are three dogs.", True),
        ("How many?", "three", "thirteen", False),
        ("Which colour?", "Red", "It is a RED one", True),
        ("Which colour?", "red", "It is not red.", False),
        ("Which colour?", "red", "It isn't red.", False),
        ("Which colour?", "not red", "It is not red.", True),
        ("Which colour?", "red", "blue", False),
        ("Where?", "at the top", "It is at top left.", True),  # known to be lenient: what is right is never trained on
        ("Where?", "at the top", "at the left, on top", False),
    ],
)
def test_closed_answers_are_compared_by_rules(question: str, reference: str, answer: str, right: bool | None) -> None:
    assert agrees(question, reference, answer) is right


def test_an_open_reference_cannot_be_compared_by_rules() -> None:
    with pytest.raises(ValueError, match="open answer"):
        agrees("What?", OPEN, OPEN)


@given(st.text(max_size=30))
def test_a_short_reference_agrees_with_itself(text: str) -> None:
    if form_of("What is it?", text) in ("short", "yes/no"):
        assert agrees("What is it?", text, text) is True


def test_words_without_articles_and_with_digits() -> None:
    assert words("The two dogs, an Owl & a cat!") == ["2", "dogs", "owl", "cat"]


async def test_an_open_answer_is_judged_by_the_model_without_media() -> None:
    lm, sample_lm = bound(0.8)
    found = await same_meaning("What {happens}?", OPEN, "He sleeps.", sample_lm)
    [(verb, chat)] = lm.asked
    assert (verb, chat.media, len(chat.messages)) == ("choose", (), 1)
    assert chat.prompt == (
        f"Question: What {{happens}}?\nReference answer: {OPEN}\nGiven answer: He sleeps.\nDoes the given answer say "
        "the same as the reference answer? Answer yes or no."
    )
    assert found.value == pytest.approx(0.8)
    assert found.raw["form"] == "open"


@pytest.mark.parametrize(("mass", "readable"), [(0.1, True), (0.0999, False)])
async def test_a_judge_that_says_neither_yes_nor_no_is_an_error(mass: float, readable: bool) -> None:
    _, lm = bound(0.8, mass)
    if readable:
        assert (await same_meaning("What?", OPEN, "He sleeps.", lm)).value == pytest.approx(0.8)
    else:
        with pytest.raises(SampleError, match="neither yes nor no"):
            await same_meaning("What?", OPEN, "He sleeps.", lm)


@pytest.mark.parametrize(
    ("reference", "answer", "value"), [("Yes.", "Yes", 1.0), ("Yes.", "No", 0.0), ("Yes.", "Well", None)]
)
async def test_closed_answers_ask_the_model_nothing(reference: str, answer: str, value: float | None) -> None:
    def never(chat: Chat, *_: object) -> tuple[float, float]:
        raise AssertionError(chat)

    lm = ScriptedLM({}, choose=never)
    found = await compare("Is it?", reference, answer, SampleLM(lm, sample_id="s"))
    assert (found.value, found.raw) == (value, {"form": "yes/no"})
    assert not lm.asked
