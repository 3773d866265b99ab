from __future__ import annotations

import random
import re

import pytest

from mmalign.errors import NoPair
from mmalign.inject.cooccurrence import Cooccurrence
from mmalign.inject.guides import OPENERS, Guides, guide
from mmalign.text.objects import Vocabulary

WORDS = Vocabulary.load()
KNOWN = Cooccurrence.learn([["boat", "fish", "crab", "anchor"], ["boat", "fish"]])


def test_there_are_twenty_openers_that_hold_one_thing_each() -> None:
    assert len(OPENERS) == len(set(OPENERS)) == 20
    assert all(("{a}" in opener) != ("{plural}" in opener) for opener in OPENERS)


@pytest.mark.parametrize("name", ["apple", "scissors", "snow", "knife", "umbrella", "fish", "unicorn", "person"])
def test_article_and_number_are_right_in_every_opener(name: str) -> None:
    for seed in range(60):
        phrase = guide(name, WORDS, OPENERS, random.Random(seed)).phrase
        assert "{" not in phrase
        assert not re.search(r"\ba [aeio]|\ban [^aeiouh]|\ban? \w+ers\b|\ba (?:snow|scissors)\b", phrase)
        assert [mention.name for mention in WORDS.mentions(phrase)][-1] == name
        if name in ("scissors", "snow", "fish"):
            assert not re.search(r"\bare\b", phrase)


def test_synonyms_are_used() -> None:
    phrases = {guide("dog", WORDS, ("There is {a}",), random.Random(seed)).phrase for seed in range(80)}
    assert {"There is a dog", "There is a puppy"} <= phrases


def test_a_word_without_a_plural_needs_another_opener() -> None:
    with pytest.raises(NoPair, match="'snow', which has no plural"):
        guide("snow", WORDS, ("There are {plural}",), random.Random(0))


async def test_a_thing_is_drawn_once_and_never_one_that_is_named() -> None:
    guides = Guides(KNOWN, WORDS, {"boat"}, {"boat", "fish"}, random.Random(1))
    assert {(await guides.draw()).name, (await guides.draw()).name} == {"crab", "anchor"}
    with pytest.raises(NoPair, match="there is no thing to inject"):
        await guides.draw()


async def test_what_is_in_the_picture_is_passed_over() -> None:
    asked: list[str] = []

    async def is_there(name: str) -> bool:
        asked.append(name)
        return name == "anchor"

    for seed in range(8):
        guides = Guides(KNOWN, WORDS, {"boat"}, {"boat", "fish"}, random.Random(seed), is_there=is_there)
        assert (await guides.draw()).name == "crab"
    assert "anchor" in asked


async def test_a_model_that_sees_everything_gives_up_after_the_attempts() -> None:
    asked: list[str] = []

    async def is_there(name: str) -> bool:
        asked.append(name)
        return True

    guides = Guides(KNOWN, WORDS, {"boat"}, {"boat"}, random.Random(0), attempts=2, is_there=is_there)
    with pytest.raises(NoPair, match="sees all the things"):
        await guides.draw()
    assert len(asked) == 2
