from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign.errors import NoPair
from mmalign.inject.guides import Guide
from mmalign.inject.language_prior import (
    LanguagePrior,
    draw_positions,
    first_sentence,
    num_content_words,
    num_injected,
    position_weights,
)
from mmalign.text.sentences import sentences
from mmalign.types import Chat, Completion, MediaRef, Picture, Sample, Sampling

ORACLE = [0.1627, 0.2301, 0.2818, 0.3254]
SAMPLE = Sample("s", (Picture(Image.new("RGB", (2, 2)), MediaRef("a.png")),), system="Be brief.")
CHAT = SAMPLE.ask("Describe the picture.")


def test_how_many_sentences_are_replaced() -> None:
    expected = [0] * 3 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 3  # n = 0 ... 20
    assert [num_injected(n, 0.2) for n in range(21)] == expected
    assert [num_injected(n, 0.1) for n in (5, 6, 15, 25)] == [0, 1, 2, 2]


def test_position_weights_of_five_sentences() -> None:
    weights = position_weights(5, 1)
    assert [w / sum(weights) for w in weights] == pytest.approx(ORACLE, abs=5e-5)
    assert (weights[0], weights[-1]) == (1.0, 2.0)


def test_position_weights_at_the_edges() -> None:
    assert position_weights(2, 1) == [1.0]
    assert position_weights(1, 1) == []
    assert position_weights(4, 1, ramp=False) == [1.0, 1.0, 1.0]


def test_positions_are_drawn_as_often_as_their_weights_say() -> None:
    rng, trials = random.Random(20250911), 20_000
    counts = Counter(draw_positions(5, 1, 1, rng)[0] for _ in range(trials))
    for index, p in enumerate(ORACLE, 1):
        assert abs(counts[index] - trials * p) < 3 * math.sqrt(trials * p * (1 - p))
    even = Counter(draw_positions(5, 1, 1, rng, ramp=False)[0] for _ in range(trials))
    assert all(abs(even[index] - trials / 4) < 3 * math.sqrt(trials * 3 / 16) for index in range(1, 5))


@given(st.integers(1, 30), st.integers(0, 3), st.randoms(use_true_random=False))
def test_positions_are_different_ascending_and_spare_the_head(n: int, skip: int, rng: random.Random) -> None:
    count = rng.randint(0, max(n - skip, 0))
    drawn = draw_positions(n, count, skip, rng)
    assert len(set(drawn)) == count
    assert drawn == sorted(drawn)
    assert all(skip <= index < n for index in drawn)


@pytest.mark.parametrize(
    ("continuation", "expected"),
    [
        (" on the left. And more", " on the left."),
        ("on the left", " on the left."),
        (", red and big! Yes", ", red and big!"),
        ("\n of 3.5 m,", " of 3.5 m."),
        (" near it\nSecond", " near it."),
        ("", "."),
        (" . ", "."),
    ],
)
def test_the_end_of_an_injected_sentence(continuation: str, expected: str) -> None:
    assert first_sentence(continuation) == expected


def test_content_words() -> None:
    assert num_content_words(" on the left, near a red boat.") == 3
    assert num_content_words(" is also there.") == 0


class Writer:
    """Answers in turn and remembers what it was shown."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.seen = list(answers), list[tuple[Chat, Sampling]]()

    async def __call__(self, chat: Chat, sampling: Sampling) -> Completion:
        self.seen.append((chat, sampling))
        return Completion(self.answers.pop(0))


class Draws:
    def __init__(self, *names: str) -> None:
        self.names = list(names)

    async def __call__(self) -> Guide:
        name = self.names.pop(0)
        return Guide(name, f"There is a {name}")


TEXT = "A boat sails. A fish swims!\n- A crab walks.  \nThe end"


async def test_replaced_left_to_right_without_the_picture() -> None:
    writer = Writer(" shining bright above. More", "of old iron")
    pieces = sentences(TEXT)
    sampling = Sampling(max_new_tokens=9, stop=(".",))
    made = await LanguagePrior(sampling).inject(CHAT, pieces, [1, 2], Draws("sun", "anchor"), writer)
    assert made.text == (
        "A boat sails. There is a sun shining bright above.\n- There is a anchor of old iron.  \nThe end"
    )
    assert [TEXT[s:e] for s, e in made.before] == ["A fish swims!", "A crab walks."]
    assert [made.text[s:e] for s, e in made.after] == [
        "There is a sun shining bright above.",
        "There is a anchor of old iron.",
    ]
    assert (made.indices, [g.name for g in made.guides]) == ((1, 2), ["sun", "anchor"])
    begun = [chat.messages[-1] for chat, _ in writer.seen]
    assert [turn.role for turn in begun] == ["assistant", "assistant"]
    assert [turn.text for turn in begun] == [
        "A boat sails. There is a sun",
        "A boat sails. There is a sun shining bright above.\n- There is a anchor",
    ]
    for chat, used in writer.seen:
        assert chat.media == ()
        assert [turn.role for turn in chat.messages] == ["system", "user", "assistant"]
        assert chat.prompt == "Describe the picture."
        assert used == sampling


async def test_a_completion_that_says_nothing_is_tried_again_with_another_thing() -> None:
    writer = Writer(".", " there.", " with small wings.")
    made = await LanguagePrior(Sampling()).inject(
        CHAT, sentences("A dog. A cat."), [1], Draws("x", "y", "bird"), writer
    )
    assert made.text == "A dog. There is a bird with small wings."
    assert [g.name for g in made.guides] == ["bird"]


async def test_after_the_attempts_there_is_no_pair() -> None:
    writer = Writer(".", ".", " with small wings.")
    prior = LanguagePrior(Sampling(), attempts=2)
    with pytest.raises(NoPair, match="adds nothing"):
        await prior.inject(CHAT, sentences("A dog. A cat."), [1], Draws("x", "y", "z"), writer)


@given(
    st.lists(st.sampled_from(["A dog.", " Two cats!", "\n- Red 3.5 m?", "  No end"]), min_size=2, max_size=9).map(
        "".join
    ),
    st.randoms(use_true_random=False),
)
async def test_what_is_not_replaced_stays_byte_for_byte(text: str, rng: random.Random) -> None:
    pieces = sentences(text)
    indices = sorted(rng.sample(range(len(pieces)), rng.randint(1, len(pieces))))
    writer = Writer(*[" of pure red gold."] * len(indices))
    made = await LanguagePrior(Sampling()).inject(CHAT, pieces, indices, Draws(*["kite"] * len(indices)), writer)
    left, right = text, made.text
    for (s, e), (s2, e2) in zip(reversed(made.before), reversed(made.after), strict=True):
        assert right[s2:e2] == "There is a kite of pure red gold."
        left, right = left[:s] + "\0" + left[e:], right[:s2] + "\0" + right[e2:]
    assert left == right
