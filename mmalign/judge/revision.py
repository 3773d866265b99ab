"""The self-critic: looks for the errors of the model's own answers, writes better ones, and says which are none.

VideoSAVi (arXiv 2412.00624) takes every corrected answer as the better one; the filters are ours.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Final

from mmalign.judge.pairwise import prefers
from mmalign.lm.bound import SampleLM
from mmalign.text.prompts import CRITIQUE, REVISE
from mmalign.text.questions import normalised
from mmalign.types import Chat, Completion, Judgement, Sample, Sampling

#: The kinds of errors that a critique is asked to name: those of the paper's error table.
ERROR_KINDS: Final = (
    "factual",
    "temporal order",
    "spatial relation",
    "object hallucination",
    "causal",
    "omission",
)
_NO_ERROR: Final = re.compile(r"\W*(?:there (?:is|are) )?no errors?(?: (?:found|at all))?\W*", re.IGNORECASE)
_TALK: Final = re.compile(
    r"\bcriti(?:que|cism)|\bapolog|\b(?:previous|earlier|first|original|initial|given|above|corrected|revised|improved)\s+"
    r"(?:answer|response|version)\b|\bwithout\s+(?:the|these|those)\s+errors\b",
    re.IGNORECASE,
)


def finds_no_error(critique: str) -> bool:
    """Whether a critique says "No error" and nothing else."""
    lines = [line for line in critique.splitlines() if line.strip()]
    return bool(lines) and all(_NO_ERROR.fullmatch(line) for line in lines)


def error_kinds(critique: str) -> list[str]:
    """The kinds of the errors that a critique names, one per line that begins with a kind, in order."""
    starts = [re.sub(r"^[\W\d_]+", "", line).casefold() for line in critique.splitlines()]
    return [kind for start in starts for kind in ERROR_KINDS if start.startswith(kind)]


def talks_of_itself(text: str) -> bool:
    """Whether an answer speaks of a critique or of an earlier answer, which its reader never saw."""
    return bool(_TALK.search(text))


def similarity(a: str, b: str) -> float:
    """How many of the words of two texts match in order: 2 M / (words of a + words of b); 1 for equal texts."""
    return SequenceMatcher(None, a.casefold().split(), b.casefold().split(), autojunk=False).ratio()


def length_ratio(a: str, b: str) -> float:
    """Words of `a` per word of `b`. `b` must not be empty."""
    return len(a.split()) / len(b.split())


@dataclass(frozen=True, slots=True)
class Revision:
    """A question with its first answer, the critique of that, and the corrected answer.

    `refused` says why they make no pair, and is empty where they do. The critique and the corrected answer stay empty
    where it did not come to them.
    """

    question: str
    first: Completion
    critique: str = ""
    last: Completion = field(default_factory=lambda: Completion(""))
    refused: str = ""
    vote: Judgement | None = None

    def request(self, sample: Sample) -> Chat:
        """The request for a better answer."""
        return sample.ask(REVISE.format(question=self.question, answer=self.first.text, critique=self.critique))


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """Criticises first answers and corrects them; every filter can be switched off (see the fields of `videosavi`).

    Raises ValueError for filters that would let nothing pass.
    """

    greedy: Sampling
    drawn: Sampling
    drop_no_error: bool = True
    max_similarity: float = 0.95
    length_ratio: tuple[float, float] = (0.5, 2.0)
    drop_talk: bool = True
    pairwise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_similarity <= 1:
            raise ValueError(f"max_similarity: {self.max_similarity} must be 0 to 1; 1 keeps all")
        if not 0 <= self.length_ratio[0] <= self.length_ratio[1]:
            raise ValueError(f"length_ratio: {self.length_ratio} must be [least, greatest], the first 0 or more")

    async def revise(self, sample: Sample, answered: Sequence[tuple[str, Completion]], lm: SampleLM) -> list[Revision]:
        """One revision per question and first answer, in order; each step is asked about all of them at once."""
        done = [Revision(question, first, refused=_unusable(first, "first answer")) for question, first in answered]
        at = [place for place, each in enumerate(done) if not each.refused]
        looks = [CRITIQUE.format(question=done[place].question, answer=done[place].first.text) for place in at]
        found = await asyncio.gather(*(lm.generate(sample.ask(look), self.greedy) for look in looks))
        for place, critique in zip(at, found, strict=True):
            done[place] = replace(done[place], critique=critique.text, refused=self._no_fault(critique.text))

        at = [place for place in at if not done[place].refused]
        told = await asyncio.gather(*(lm.generate(done[place].request(sample), self.greedy) for place in at))
        answers = dict(zip(at, told, strict=True))
        talking = [place for place in at if self.drop_talk and talks_of_itself(answers[place].text)]
        again = await asyncio.gather(*(lm.generate(done[place].request(sample), self.drawn) for place in talking))
        answers |= dict(zip(talking, again, strict=True))
        for place, last in answers.items():
            done[place] = replace(done[place], last=last, refused=self.why_not(done[place].first.text, last))

        at = [place for place in at if self.pairwise and not done[place].refused]
        asked = [(done[place].question, done[place].last.text, done[place].first.text) for place in at]
        votes = await asyncio.gather(*(prefers(sample, *each, lm) for each in asked))
        for place, vote in zip(at, votes, strict=True):
            lost = vote.value is None or vote.value <= 0.5
            why = "the model does not prefer its corrected answer in both orders" if lost else ""
            done[place] = replace(done[place], vote=vote, refused=why)
        return done

    def _no_fault(self, critique: str) -> str:
        if not critique.strip():
            return "the critique is empty"
        return "the critique finds no error" if self.drop_no_error and finds_no_error(critique) else ""

    def why_not(self, first: str, last: Completion) -> str:
        """Why a corrected answer makes no pair with the first one; empty where it does."""
        if useless := _unusable(last, "corrected answer"):
            return useless
        if normalised(first) == normalised(last.text):
            return "both answers are equal"
        if similarity(first, last.text) > self.max_similarity:
            return "both answers are too similar"
        if not self.length_ratio[0] <= length_ratio(last.text, first) <= self.length_ratio[1]:
            return "the answers differ too much in length"
        return "the corrected answer speaks of itself" if self.drop_talk and talks_of_itself(last.text) else ""


def _unusable(answer: Completion, what: str) -> str:
    if not answer.text.strip():
        return f"the {what} is empty"
    return f"the {what} was cut off at the token limit" if answer.finish == "length" else ""
