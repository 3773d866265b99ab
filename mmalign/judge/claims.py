"""Claims: the separate checkable statements of a long answer, each with a yes/no question for a fresh conversation.

RLAIF-V (arXiv 2405.17220) splits with a language model; so does `WrittenClaims`, with the policy's own text path and
the picture withheld. `RuleClaims` needs no model: it knows which things a text names. A denied thing ("no people")
becomes the positive question with the expected answer "no", because small models answer negated questions badly.
`SentenceClaims` takes each sentence as it stands, so that what is said of events and their order is asked, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from mmalign.lm.bound import SampleLM
from mmalign.text.articles import with_article
from mmalign.text.attributes import SIZES, VISIBLE
from mmalign.text.negation import negated
from mmalign.text.objects import Mention, Vocabulary
from mmalign.text.prompts import IS_THERE, IS_TRUE, YES_OR_NO, worded
from mmalign.text.sentences import sentences
from mmalign.types import Chat, Media, Message, Row, Sampling

#: Asks for the facts of a text, without the picture; `{text}` is the long answer.
EXTRACT: Final = (
    "Below is a description. List every separate visual fact that it states, one per line. Each line must make sense "
    "alone. Leave out opinions and guesses.\n\nDescription: {text}\n\nFacts:"
)
_LIST_MARK: Final = re.compile(r"^\s*(?:[-*•–]+|\(?\d+[.):])?\s*")
_DENIAL: Final = re.compile(r"^there (is|are) (?:no|not an?|not any) (.+)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of a text (its words and their character range), how to ask for it, and the answer that agrees.

    `name` is the object of an existence claim, and empty for any other claim.
    """

    text: str
    start: int
    end: int
    question: str
    expected: Literal["yes", "no"] = "yes"
    name: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for claims that say the same."""
        return " ".join(self.question.casefold().split()), self.expected

    def to_row(self) -> Row:
        return {"text": self.text, "span": [self.start, self.end], "question": self.question, "expected": self.expected}


class ClaimExtractor(Protocol):
    """Finds the claims of a text. No claim is given twice: "a dog ... the dog" counts once."""

    async def claims(self, text: str, lm: SampleLM, media: Sequence[Media] = ()) -> list[Claim]:
        """At most as many claims as the extractor allows, in reading order; questions speak of this kind of media."""


def existence(
    name: str, vocabulary: Vocabulary, media: Sequence[Media] = (), *, text: str = "", start: int = 0, end: int = 0
) -> Claim:
    """The claim that an object is in the picture, or in the clip where `media` holds one."""
    thing = vocabulary.thing(name)
    question = f"{worded(IS_THERE, media).format(thing=thing)} {YES_OR_NO}"
    return Claim(text or thing, start, end, question, name=name)


def truth(statement: str, media: Sequence[Media] = ()) -> str:
    """The question whether a statement holds; only the question's own words follow the kind of media."""
    return f"{worded(IS_TRUE, media).format(statement=statement)} {YES_OR_NO}"


def distinct(claims: Iterable[Claim], limit: int) -> list[Claim]:
    """The first claim of each key, at most `limit` of them."""
    found: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        found.setdefault(claim.key, claim)
    return list(found.values())[:limit]


@dataclass(frozen=True, slots=True)
class RuleClaims:
    """Existence claims by word list; with `attributes`, also that a thing looks as the text says ("a red boat")."""

    vocabulary: Vocabulary
    attributes: bool = False
    limit: int = 32

    async def claims(self, text: str, lm: SampleLM, media: Sequence[Media] = ()) -> list[Claim]:
        return self.read(text, media)

    def read(self, text: str, media: Sequence[Media] = ()) -> list[Claim]:
        """The claims of a text, at most `limit`, in reading order."""
        found: list[Claim] = []
        for mention in self.vocabulary.mentions(text):
            denied = negated(text, mention.start, mention.end)
            adjectives = _adjectives_before(text, mention)
            if not (denied and adjectives):  # "no red boat" leaves open whether there is a boat
                found.append(self._exists(text, mention, denied, media))
            if self.attributes:
                adjectives += [] if denied else _adjectives_after(text, mention)
                found += [self._looks(text, mention, *adjective, denied, media) for adjective in adjectives]
        return distinct(found, self.limit)

    def _exists(self, text: str, mention: Mention, denied: bool, media: Sequence[Media]) -> Claim:
        words = text[mention.start : mention.end]
        claim = existence(mention.name, self.vocabulary, media, text=words, start=mention.start, end=mention.end)
        return Claim(words, mention.start, mention.end, claim.question, "no" if denied else "yes", mention.name)

    def _looks(
        self, text: str, mention: Mention, word: str, start: int, end: int, denied: bool, media: Sequence[Media]
    ) -> Claim:
        first, last = min(start, mention.start), max(end, mention.end)
        statement = f"There is {with_article(f'{word} {mention.name}')}."
        return Claim(text[first:last], first, last, truth(statement, media), "no" if denied else "yes")


def _adjectives_before(text: str, mention: Mention) -> list[tuple[str, int, int]]:
    """Colours and other visible properties right before a noun, nearest first; sizes are relative and never asked."""
    found: list[tuple[str, int, int]] = []
    end = mention.start
    while word := re.compile(r"(\w+)[^\S\n]+\Z").search(text, max(0, end - 40), end):
        name = word[1].lower()
        if name not in VISIBLE and not (name == "and" and found):
            break
        if name in VISIBLE - SIZES:
            found.append((name, word.start(1), word.end(1)))
        end = word.start(1)
    return found


def _adjectives_after(text: str, mention: Mention) -> list[tuple[str, int, int]]:
    """'the boat is red'."""
    word = re.compile(r"[^\S\n]+(?:is|are)[^\S\n]+(\w+)(?=\s*[.,;!?\n]|\s+and\b|\Z)").match(text, mention.end)
    if word and word[1].lower() in VISIBLE - SIZES:
        return [(word[1].lower(), word.start(1), word.end(1))]
    return []


@dataclass(frozen=True, slots=True)
class SentenceClaims:
    """Each sentence as it stands, asked as "Is this true for the video? First the fish moves up."; needs no model.

    A sentence that leans on another one ("It is red.") is asked without it.
    """

    limit: int = 32

    async def claims(self, text: str, lm: SampleLM, media: Sequence[Media] = ()) -> list[Claim]:
        return self.read(text, media)

    def read(self, text: str, media: Sequence[Media] = ()) -> list[Claim]:
        """The claims of a text, at most `limit`, in reading order; pieces of fewer than two words state nothing."""
        found = []
        for start, end in (piece.core for piece in sentences(text)):
            statement = " ".join(text[start:end].split())
            if len(re.findall(r"[^\W\d_]+", statement)) >= 2 and not statement.endswith((":", "?")):
                found.append(Claim(text[start:end], start, end, truth(statement, media)))
        return distinct(found, self.limit)


@dataclass(frozen=True, slots=True)
class WrittenClaims:
    """Facts that the model itself lists from a text, without the picture; asked as "Is this true for the picture?"."""

    limit: int = 32
    prompt: str = EXTRACT
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512))

    async def claims(self, text: str, lm: SampleLM, media: Sequence[Media] = ()) -> list[Claim]:
        request = Chat((Message("user", (self.prompt.replace("{text}", text),)),))
        listed = await lm.generate(request, self.sampling)
        lines = listed.text.splitlines()
        if listed.finish == "length":
            lines = lines[:-1]  # the last one was cut off
        return self.parse(lines, text, media)

    def parse(self, lines: Iterable[str], text: str, media: Sequence[Media] = ()) -> list[Claim]:
        """Claims from the lines that a model wrote; what is no statement (headings, empty bullets) is passed over."""
        found = []
        for line in lines:
            fact = _LIST_MARK.sub("", line).replace("**", "").strip(" \t\"'`*_")
            if len(re.findall(r"[^\W\d_]+", fact)) < 2 or fact.endswith(":"):
                continue
            fact = fact.rstrip(".!; ") + "."
            expected: Literal["yes", "no"] = "yes"
            if denial := _DENIAL.match(fact):
                bare = denial[1].lower() == "is"
                fact = f"There is {with_article(denial[2])}" if bare else f"There are {denial[2]}"
                expected = "no"
            start, end = _place(fact, text)
            found.append(Claim(fact, start, end, truth(fact, media), expected))
        return distinct(found, self.limit)


def _place(fact: str, text: str) -> tuple[int, int]:
    """The sentence of the text that shares most words with a fact."""
    words = set(re.findall(r"\w+", fact.lower()))
    pieces = sentences(text)
    best = max(pieces, key=lambda piece: len(words & set(re.findall(r"\w+", piece.text.lower()))), default=None)
    return best.core if best else (0, 0)
