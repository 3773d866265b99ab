"""VideoSAVi's pairs (Kulkarni and Fazli, COLM 2025, arXiv 2412.00624): a video model asks, answers and corrects itself.

"critique", the published version: the model criticises its first answer to its own question and writes a corrected one;
corrected is chosen, first is rejected. "judge", the version of December 2024: several answers at rising temperatures,
each scored by the model, best against worst. Departures from both: docs/methods/videosavi.md.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from typing import Final, Literal

from mmalign.errors import NoPair
from mmalign.judge.revision import Critic, error_kinds, length_ratio
from mmalign.judge.rubric import Scored, best_and_worst, request, scores
from mmalign.lm.bound import SampleLM
from mmalign.methods import method
from mmalign.text.prompts import ASK_SPATIAL, ASK_TEMPORAL, TELL
from mmalign.text.questions import normalised, questions
from mmalign.types import Pair, Sample, Sampling

NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
#: The three questions of "judge"; the wording is ours.
ASK_WHAT_WHY_HOW: Final = (
    "Caption: {caption}\nWrite three questions about the video: the first begins with What, the second with Why, the "
    "third with How. One question per line, no answers."
)


@method("videosavi", media="video", paper="Kulkarni, Fazli 2025, arXiv 2412.00624", gives="value:gap")
class VideoSAVi:
    """An answer that the model corrected after its own critique against its first one.

    Args:
        variant: "critique", or "judge" (answers at several temperatures, scored by the model, best against worst).
        spatial: Questions about what is where, with "critique"; at most ten.
        temporal: Questions about what happens when, with "critique"; at most ten.
        temperature: Of questions and first answers.
        top_p: Nucleus of questions and first answers.
        max_new_tokens: Token limit of every text; a side that reaches it gives no pair.
        drop_no_error: Drop where the critique finds no error.
        max_similarity: Drop where more of the words are the same; 1 keeps all.
        length_ratio: Drop where the corrected answer has fewer or more words per word of the first one.
        drop_talk: Drop where the corrected answer speaks of a critique or an earlier answer twice running.
        pairwise: Keep only what the model prefers to the first answer in both orders.
        temperatures: Of the answers to one question, with "judge".
        min_gap: Smallest difference of the scores, with "judge".
    """

    variant: Literal["critique", "judge"] = "critique"
    spatial: int = 3
    temporal: int = 3
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    drop_no_error: bool = True
    max_similarity: float = 0.95
    length_ratio: tuple[float, float] = (0.5, 2.0)
    drop_talk: bool = True
    pairwise: bool = False
    temperatures: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9, 1.0)
    min_gap: float = 1.0

    def __post_init__(self) -> None:
        if not self.spatial + self.temporal > 0 or not all(0 <= n <= 10 for n in (self.spatial, self.temporal)):
            raise ValueError("spatial and temporal: give 0 to 10 questions of each kind and at least one")
        if len(self.temperatures) < 2 or not self.min_gap > 0:
            raise ValueError("temperatures and min_gap: two answers and a gap above 0 are needed to compare")
        if not all(0 <= t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures: {self.temperatures} must all be 0 (greedy) or more")
        _ = self.critic  # wrong values are refused before the run starts

    @property
    def drawn(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens)

    @property
    def critic(self) -> Critic:
        names = ("drop_no_error", "max_similarity", "length_ratio", "drop_talk", "pairwise")
        greedy = Sampling(max_new_tokens=self.max_new_tokens)
        return Critic(greedy=greedy, drawn=self.drawn, **{name: getattr(self, name) for name in names})

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair | NoPair]:
        for pair in await (self.corrected if self.variant == "critique" else self.compared)(sample, lm):
            yield pair

    async def questions(self, sample: Sample, lm: SampleLM) -> list[tuple[str, str]]:
        """What the model asks itself about the clip, each with its kind; a prompt of the data takes their place."""
        if sample.prompt:
            return [(sample.prompt, "data")]
        wanted = [("spatial", ASK_SPATIAL, self.spatial), ("temporal", ASK_TEMPORAL, self.temporal)]
        wanted = [(kind, request.format(number=NUMBERS[num]), num) for kind, request, num in wanted if num]
        written = await asyncio.gather(*(lm.generate(sample.ask(request), self.drawn) for _, request, _ in wanted))
        found: dict[str, tuple[str, str]] = {}
        for (kind, _, num), told in zip(wanted, written, strict=True):
            for question in questions(told)[:num]:
                found.setdefault(normalised(question), (question, kind))
        if not found:
            raise NoPair("the model wrote no usable question")
        return list(found.values())

    async def corrected(self, sample: Sample, lm: SampleLM) -> list[Pair | NoPair]:
        """A pair, or why there is none, for each question that the model asks itself."""
        asked = await self.questions(sample, lm)
        firsts = await asyncio.gather(*(lm.generate(sample.ask(question), self.drawn) for question, _ in asked))
        answered = [(question, first) for (question, _), first in zip(asked, firsts, strict=True)]
        made: list[Pair | NoPair] = []
        for (question, kind), found in zip(asked, await self.critic.revise(sample, answered, lm), strict=True):
            if found.refused:
                made.append(NoPair(found.refused))
                continue
            about = {
                "critique": found.critique,
                "error_kinds": error_kinds(found.critique),
                "length_ratio": length_ratio(found.last.text, found.first.text),
                "seeds": [found.last.seed, found.first.seed],
            }
            votes = () if found.vote is None else (found.vote,)
            made.append(Pair(sample.ask(question), found.last, found.first, kind, judgements=votes, provenance=about))
        return made

    async def compared(self, sample: Sample, lm: SampleLM) -> list[Pair | NoPair]:
        """A pair, or why there is none, for each What, Why and How: the best-scored answer against the worst."""
        caption = (await lm.generate(sample.ask(TELL[0]), Sampling(max_new_tokens=self.max_new_tokens))).text
        asked = [sample.prompt]
        if not sample.prompt:
            asked = questions(await lm.generate(sample.ask(ASK_WHAT_WHY_HOW.format(caption=caption)), self.drawn))[:3]
        drawn = [(question, t) for question in asked for t in self.temperatures]
        chats = [(sample.ask(question), Sampling(t, max_new_tokens=self.max_new_tokens)) for question, t in drawn]
        answers = await asyncio.gather(*(lm.generate(*each) for each in chats))
        rated = [request(sample, caption, q, a.text) for (q, _), a in zip(drawn, answers, strict=True)]
        by_question: dict[str, list[Scored]] = {question: [] for question, _ in drawn}
        for (question, t), answer, score in zip(drawn, answers, await scores(rated, lm), strict=True):
            if score is not None and answer.finish == "stop" and answer.text.strip():
                by_question[question].append(Scored(score, t, answer))
        made: list[Pair | NoPair] = [] if drawn else [NoPair("the model wrote no usable question")]
        for question, scored in by_question.items():
            ends = best_and_worst(scored, self.min_gap)
            if ends is None:
                made.append(NoPair("the scores of the answers do not differ enough, or cannot be read"))
                continue
            better, worse = (each.answer for each in ends)
            about = {"caption": caption, "scores": [each.score for each in scored]}
            gap, votes = ends[0].score - ends[1].score, tuple(each.judgement for each in ends)
            chat = sample.ask(question)
            made.append(Pair(chat, better, worse, "judge", gap=gap, judgements=votes, provenance=about))
        return made
