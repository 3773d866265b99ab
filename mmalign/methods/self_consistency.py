"""Self-consistency (Han, Hao et al., 2025, arXiv 2509.23236): short answers check long ones.

A model is more reliable when it answers a short yes/no question than when it writes a long description. So it writes
several descriptions, answers one question per claim in them, and the description that it agrees with most is preferred
to the one that it agrees with least. Departures from the paper: docs/methods/self_consistency.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from statistics import median
from typing import Literal

from mmalign.errors import NoPair, SampleError
from mmalign.judge.claims import ClaimExtractor, RuleClaims, SentenceClaims, WrittenClaims
from mmalign.judge.consistency import Assessment, ConsistencyJudge
from mmalign.judge.length import balanced
from mmalign.judge.verdict import MIN_GAP, Score
from mmalign.lm.bound import SampleLM
from mmalign.methods import method
from mmalign.pairs import PairRow
from mmalign.text.objects import Vocabulary
from mmalign.text.prompts import DETAIL, worded
from mmalign.types import Chat, Completion, Pair, Sample, Sampling

Answer = tuple[Completion, Assessment, float]


@method("self_consistency", media=("image", "video"), paper="Han, Hao et al. 2025, arXiv 2509.23236", gives="value:gap")
class SelfConsistency:
    """Long answers, ranked by how far the model's own yes/no answers agree with them.

    Args:
        samples: Long answers drawn per prompt.
        include_greedy: Add the greedy answer to them.
        temperature: Of the long answers; one setting for all, so that style does not separate good from bad.
        top_p: Nucleus of the long answers.
        max_new_tokens: Token limit of a long answer; one that reaches it is dropped.
        prompts: Requests to draw from without a prompt in the data. For clips the default ones say video, yours stay.
        extractor: How claims are found: "rule" (things that the text names), "llm" (facts that the model lists) or
            "sentences" (each sentence as it stands; for what a text says of events).
        attributes: With "rule", also check colours and materials ("a red boat").
        vocabulary: "objects", "drawn" (the embedded model's world), or a word list like mmalign/text/objects.txt.
        max_claims: Most claims per answer.
        score: count (inconsistent claims), rate, soft, or min_logp (log-probability of the worst claim).
        band: Answers with P(yes) within this distance of .5 count neither way.
        min_mass: A question is invalid where yes and no have less than this probability together.
        miss_penalty: Cost of each thing that the model lists by itself and the answer leaves out; 0 asks for no list.
        coverage: A chosen answer has at least this share of the median number of consistent claims.
        pairing: best_worst, or all pairs that differ enough, `max_pairs` of them drawn at random.
        max_pairs: Most pairs per prompt with pairing "all".
        min_gap: Smallest difference of scores; by default what fits the score (count 1, rate .2, soft .5, min_logp 1).
        absent_questions: Things asked for that nothing suggests; a model that says yes to all is not asked further.
        length_guard: Drop the pairs that shorten most, until both sides are about equally long over the whole set.
    """

    samples: int = 8
    include_greedy: bool = False
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    prompts: tuple[str, ...] = DETAIL
    extractor: Literal["rule", "llm", "sentences"] = "rule"
    attributes: bool = False
    vocabulary: str = "objects"
    max_claims: int = 32
    score: Score = "count"
    band: float = 0.1
    min_mass: float = 0.1
    miss_penalty: float = 1.0
    coverage: float = 0.8
    pairing: Literal["best_worst", "all"] = "best_worst"
    max_pairs: int = 2
    min_gap: float | None = None
    absent_questions: int = 2
    length_guard: bool = True

    def __post_init__(self) -> None:
        if self.samples + self.include_greedy < 2:
            raise ValueError(f"samples: {self.samples} gives fewer than two answers to compare; use 2 or more")
        if self.min_gap is not None and not self.min_gap > 0:
            raise ValueError(f"min_gap: {self.min_gap} would pair equal answers; use a number above 0")
        _ = self.judge, Sampling(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens)  # refuse these too

    @property
    def judge(self) -> ConsistencyJudge:
        words = Vocabulary.load(self.vocabulary)
        extractors: dict[str, ClaimExtractor] = {
            "rule": RuleClaims(words, self.attributes, self.max_claims),
            "llm": WrittenClaims(self.max_claims),
            "sentences": SentenceClaims(self.max_claims),
        }
        return ConsistencyJudge(
            extractors[self.extractor], words, self.score, self.band, self.min_mass, self.miss_penalty
        )

    async def pairs(self, sample: Sample, lm: SampleLM, rng: Random) -> AsyncIterator[Pair]:
        chat = sample.ask(sample.prompt or worded(rng.choice(self.prompts), sample.media))
        written = await self.write(chat, lm)
        assessed = await self.judge.assess(sample, [answer.text for answer in written], lm)
        await self.refuse_yes_sayer(sample, assessed, lm, rng)
        answers = [(a, s, s.score) for a, s in zip(written, assessed, strict=True) if s.score is not None]
        if not answers:
            raise SampleError("no claim of any answer could be judged (nothing known named, or no yes/no answers)")
        for better, worse in self.preferences(answers, rng):
            yield Pair(
                chat,
                chosen=better[0],
                rejected=worse[0],
                source=self.pairing,
                gap=better[2] - worse[2],
                rejected_spans=worse[1].denied,
                judgements=(better[1].judgement("chosen"), worse[1].judgement("rejected")),
                provenance={"scores": [s.score for s in assessed], "seeds": [better[0].seed, worse[0].seed]},
            )

    async def write(self, chat: Chat, lm: SampleLM) -> list[Completion]:
        """Long answers that end by themselves and differ in more than white space."""
        drawn = Sampling(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens)
        requests = [drawn] * self.samples + [Sampling(max_new_tokens=self.max_new_tokens)] * self.include_greedy
        answers = await asyncio.gather(*(lm.generate(chat, sampling) for sampling in requests))
        whole = {" ".join(a.text.split()): a for a in answers if a.finish == "stop" and a.text.strip()}
        if len(whole) < 2:
            raise NoPair("fewer than two different whole answers")
        return list(whole.values())

    async def refuse_yes_sayer(self, sample: Sample, assessed: list[Assessment], lm: SampleLM, rng: Random) -> None:
        """Stop where the model affirms things that neither its answers nor its own list name."""
        suggested = {name for s in assessed for name in (*s.named, *s.missing)}
        unlikely = [name for name in self.judge.vocabulary.names if name not in suggested]
        asked = rng.sample(unlikely, min(self.absent_questions, len(unlikely)))
        if await self.judge.says_yes_to_absent(sample, asked, lm):
            raise NoPair("the model also says yes to things that nothing suggests")

    def preferences(self, answers: list[Answer], rng: Random) -> list[tuple[Answer, Answer]]:
        """Which answers to prefer to which. A better one must not owe its score to saying little."""
        enough = self.coverage * median(s.num_consistent for _, s, _ in answers)
        covering = [answer for answer in answers if answer[1].num_consistent >= enough]
        gap = MIN_GAP[self.score] if self.min_gap is None else self.min_gap
        found = [(good, bad) for good in covering for bad in answers if good[2] - bad[2] >= gap]
        if not found:
            raise NoPair("the answers do not differ enough in score")
        if self.pairing == "all":
            return rng.sample(found, min(self.max_pairs, len(found)))
        return [max(found, key=lambda pair: (pair[0][2], -pair[1][2]))]

    def select(self, rows: list[PairRow]) -> list[PairRow]:
        return balanced(rows) if self.length_guard else rows
