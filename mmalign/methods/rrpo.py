"""RRPO's pairs (Sarkar and Etemad, NeurIPS 2025, arXiv 2504.12083): errors made while looking at a damaged clip.

A box hides part of every frame and neighbouring frames change places; the model answers from that. An answer that is
wrong by the reference is kept, its errors alone are written into the reference, and the phrases in which the two then
differ are marked: the objective `rrpo` trains nothing else. Departures from the paper: docs/methods/rrpo.md.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

from mmalign.corrupt import apply, check_corruptions, draw
from mmalign.errors import NoPair, SampleError
from mmalign.judge.own_answer import own_answer, usable
from mmalign.judge.reference import compare, form_of
from mmalign.judge.sentences import stands_by
from mmalign.lm.bound import SampleLM
from mmalign.methods import check_filled, check_least, method
from mmalign.text.diff import phrase_spans
from mmalign.text.prompts import ASK_SPATIAL, ASK_TEMPORAL, DIFFERENCES, REWRITE, TELL
from mmalign.text.questions import questions
from mmalign.types import Chat, Completion, Media, Message, Pair, Sample, Sampling


@method("rrpo", media="video", paper="Sarkar, Etemad 2025, arXiv 2504.12083")
class RRPO:
    """A true answer against the same one with the errors that the model makes when the clip is damaged.

    Args:
        corruptions: Damage done to the clip, one after the other.
        area: Range of the hidden share of the frame (box_mask).
        window: Frames that change places among themselves (local_shuffle).
        temperature: Of the answer from the damaged clip.
        max_new_tokens: Token limit of every text; an answer that reaches it gives no pair.
        questions: Where the data bring no prompt, "pool" (one of `prompts`) or "asked" (the model asks itself).
        prompts: Requests to draw from with "pool".
        rewrite: "auto" (open answers are rewritten), or "never" (the wrong answer itself is the rejected side).
        open_judge: How an open answer is found wrong: by "reference" (does it say the same, asked without the clip) or
            by "clip" (is each of its sentences true for the clean clip, the least likely one counts).
        max_same: An open answer is wrong where that probability is at most this.
        own_references: Where the data bring no reference, so many own answers from the clean clip are looked at, the
            greedy one first, for one of which the model affirms every sentence by yes or no; 0 takes the greedy one.
    """

    corruptions: tuple[str, ...] = ("local_shuffle", "box_mask")
    area: tuple[float, float] = (0.25, 0.5)
    window: int = 4
    temperature: float = 0.7
    max_new_tokens: int = 512
    questions: Literal["pool", "asked"] = "pool"
    prompts: tuple[str, ...] = TELL
    rewrite: Literal["auto", "never"] = "auto"
    open_judge: Literal["reference", "clip"] = "reference"
    max_same: float = 0.5
    own_references: int = 4

    def __post_init__(self) -> None:
        check_corruptions(self.corruptions, self.ranges)
        check_filled(self, "prompts")
        check_least(self, own_references=0)
        if not 0 <= self.max_same < 1:
            raise ValueError(f"max_same: {self.max_same} must be at least 0 and below 1")
        _ = self.drawn  # wrong values are refused before the run starts

    @property
    def drawn(self) -> Sampling:
        return Sampling(self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def ranges(self) -> dict[str, dict[str, Any]]:
        return {"box_mask": {"area": self.area}, "local_shuffle": {"window": self.window}}

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        question, asked_by = await self.question(sample, lm, rng)
        reference, told_by = await self.reference(sample, question, lm)
        damaged = tuple(self.damaged(medium, rng) for medium in sample.media)
        answer = usable(await lm.generate(sample.ask(question).with_media(damaged), self.drawn), "answer")
        looks = self.open_judge == "clip" and form_of(question, reference.text) == "open"
        judging = stands_by(sample, answer.text, lm) if looks else compare(question, reference.text, answer.text, lm)
        verdict = await judging
        if verdict.value is None:
            raise NoPair("the answer from the damaged clip cannot be read")
        if verdict.value > self.max_same:
            raise NoPair("the answer from the damaged clip is right")
        rejected, differences = answer, ""
        if self.rewrite == "auto" and verdict.raw["form"] == "open":
            rejected, differences = await self.rewritten(question, reference.text, answer.text, lm)
        if rejected.text.casefold().split() == reference.text.casefold().split():
            raise NoPair("both texts are equal")
        chosen_spans, rejected_spans = phrase_spans(reference.text, rejected.text)
        if not chosen_spans or not rejected_spans:
            raise NoPair("no phrase differs on both sides")
        yield Pair(
            sample.ask(question),
            reference,
            rejected,
            source="rewritten" if differences else "answer",
            chosen_spans=chosen_spans,
            rejected_spans=rejected_spans,
            judgements=(verdict,),
            provenance={
                "question_by": asked_by,
                "reference_by": told_by,
                "answer": answer.text,
                "differences": differences,
                "rejected_media": [medium.ref.to_row() for medium in damaged],
                "seeds": [reference.seed, answer.seed],
            },
        )

    async def question(self, sample: Sample, lm: SampleLM, rng: random.Random) -> tuple[str, str]:
        """What is asked about the clip, and where that comes from."""
        if sample.prompt:
            return sample.prompt, "data"
        if "answer" in sample.meta:
            raise SampleError("the sample has an answer under meta but no prompt that it answers")
        if self.questions == "pool":
            return rng.choice(self.prompts), "pool"
        request = rng.choice((ASK_SPATIAL, ASK_TEMPORAL)).format(number="three")
        found = questions(await lm.generate(sample.ask(request), self.drawn))
        if not found:
            raise NoPair("the model wrote no usable question")
        return rng.choice(found), "model"

    async def reference(self, sample: Sample, question: str, lm: SampleLM) -> tuple[Completion, str]:
        """The reference answer of the data; without one, the model's own answer from the clean clip."""
        if "answer" not in sample.meta:
            return await own_answer(sample, question, lm, self.drawn, tries=self.own_references), "model, clean clip"
        answer = sample.meta["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise SampleError(f"meta.answer is {answer!r}; it must be the reference answer as text")
        return Completion(answer), "data"

    def damaged(self, medium: Media, rng: random.Random) -> Media:
        for name in self.corruptions:
            medium = apply(medium, draw(name, rng, **self.ranges.get(name, {})))
        return medium

    async def rewritten(self, question: str, reference: str, answer: str, lm: SampleLM) -> tuple[Completion, str]:
        """The reference with nothing but the answer's errors put in, and these errors; asked without media."""
        greedy = Sampling(max_new_tokens=self.max_new_tokens)
        ask = Message("user", (DIFFERENCES.format(question=question, reference=reference, answer=answer),))
        named = usable(await lm.generate(Chat((ask,)), greedy), "list of differences")
        if re.fullmatch(r"\W*none\W*", named.text, re.IGNORECASE):
            raise NoPair("the model names no key thing that differs")
        turns = (ask, Message("assistant", (named.text,)), Message("user", (REWRITE,)))
        return usable(await lm.generate(Chat(turns), greedy), "rewritten answer"), named.text
