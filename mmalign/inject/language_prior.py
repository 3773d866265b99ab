"""Sentences that a model writes blind: it goes on with a description without seeing the picture, so it writes what is
likely and not what is there (APASI, arXiv 2509.11287, steps 4 to 8).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mmalign.errors import NoPair
from mmalign.inject.guides import Guide
from mmalign.text.sentences import Sentence, sentences
from mmalign.types import Chat, Completion, Sampling

#: Asks the model (the `generate` of an LM), and draws the beginning of one injected sentence.
Write = Callable[[Chat, Sampling], Awaitable[Completion]]
Draw = Callable[[], Awaitable[Guide]]

#: Words that say nothing about a scene; a completion needs others.
_FUNCTION_WORDS: Final = frozenset(
    "a an the this that these those it its he she they them their his her there here is are was were be been being am "
    "has have had do does did will would can could may might must shall should and or but nor so as if than then of in "
    "on at by to from with for into onto over under up down out off near also too very just some any no not which who "
    "whose what where when while how all both each one".split()
)


def num_injected(num_sentences: int, rate: float) -> int:
    """How many sentences of a text are replaced: `rate` of them, halves rounded to the even number (step 4)."""
    return round(rate * num_sentences)


def position_weights(num_sentences: int, skip: int, *, ramp: bool = True) -> list[float]:
    """Weights of sentences `skip` ... n-1: a square-root ramp from 1 to 2, as hallucinations come late (step 5).

    All 1 without `ramp` or where only one sentence is eligible.
    """
    last = num_sentences - 1
    if not ramp or last <= skip:
        return [1.0] * max(num_sentences - skip, 0)
    span = math.sqrt(last) - math.sqrt(skip)
    return [1.0 + (math.sqrt(index) - math.sqrt(skip)) / span for index in range(skip, num_sentences)]


def draw_positions(num_sentences: int, count: int, skip: int, rng: random.Random, *, ramp: bool = True) -> list[int]:
    """`count` different sentences out of `skip` ... n-1, drawn one after the other by their weights; ascending."""
    left = dict(zip(range(skip, num_sentences), position_weights(num_sentences, skip, ramp=ramp), strict=True))
    drawn = []
    for _ in range(count):
        index = rng.choices(list(left), list(left.values()))[0]
        del left[index]
        drawn.append(index)
    return sorted(drawn)


@dataclass(frozen=True, slots=True)
class Injection:
    """A text with sentences replaced, and what was replaced: indices, guides, character ranges before and after."""

    text: str
    indices: tuple[int, ...]
    guides: tuple[Guide, ...]
    before: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LanguagePrior:
    """Writes the replacements. `attempts` beginnings are tried for each until it says something."""

    sampling: Sampling
    min_content_words: int = 2
    attempts: int = 3

    async def inject(
        self,
        chat: Chat,
        pieces: Sequence[Sentence],
        indices: Sequence[int],
        draw: Draw,
        write: Write,
    ) -> Injection:
        """Replace the sentences at `indices` (ascending), left to right; all others stay as they are, byte for byte.

        The model gets the chat without media and its answer begun: all so far, replacements included, and the guide.
        Raises NoPair when no attempt gives a sentence.
        """
        text = ""
        guides: list[Guide] = []
        after: list[tuple[int, int]] = []
        for index, piece in enumerate(pieces):
            if index not in indices:
                text += piece.text
                continue
            start = len(text + piece.lead)
            written, written_by = await self._sentence(chat.without_media(), text + piece.lead, draw, write)
            text += piece.lead + written
            after.append((start, len(text)))
            guides.append(written_by)
            text += piece.tail
        before = tuple(pieces[index].core for index in indices)
        return Injection(text, tuple(indices), tuple(guides), before, tuple(after))

    async def _sentence(self, chat: Chat, begun: str, draw: Draw, write: Write) -> tuple[str, Guide]:
        for _ in range(self.attempts):
            drawn = await draw()
            completion = await write(chat.answering(begun + drawn.phrase), self.sampling)
            rest = first_sentence(completion.text)
            if num_content_words(rest) >= self.min_content_words:
                return drawn.phrase + rest, drawn
        raise NoPair("the model adds nothing to the injected beginning")


def first_sentence(continuation: str) -> str:
    """What a continuation adds to its sentence: up to the first end, with a space before it and a "." after."""
    continuation = continuation.lstrip("\n")
    pieces = sentences(continuation)
    first = pieces[0].text.rstrip() if pieces else ""
    if not re.search(r"\w", first):
        return "."
    if first[0].isalnum():
        first = f" {first}"
    return first if first[-1] in ".!?" else f"{first.rstrip(',;:')}."


def num_content_words(text: str) -> int:
    """Words that are not only grammar."""
    return sum(word.lower() not in _FUNCTION_WORDS for word in re.findall(r"[^\W\d_]+", text))
