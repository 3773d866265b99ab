"""The rubric judge: one answer at a time, scored from 1 to 5 on four criteria (VideoSAVi v1, arXiv 2412.00624).

The paper shows scores such as 5.0 and 3.0; the range, the wording and the JSON form are ours.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from statistics import fmean, median
from typing import Final, NamedTuple

from mmalign.lm.bound import SampleLM
from mmalign.text.prompts import for_media
from mmalign.types import Chat, Completion, Judgement, Sample, Sampling

CRITERIA: Final = ("relevance", "accuracy", "temporal_grounding", "clarity")
SCORE: Final = (
    "Score the answer from 1 (worst) to 5 (best) by what the picture shows. Write only JSON: "
    '{"relevance": 1, "accuracy": 1, "temporal_grounding": 1, "clarity": 1}'
)
LOW: Final = 1.0
HIGH: Final = 5.0
_OBJECT: Final = re.compile(r"\{[^{}]*\}")


def request(sample: Sample, caption: str, question: str, answer: str) -> Chat:
    """The question for the scores of one answer; a caption helps the judge to see what the answer is about."""
    rule = for_media(SCORE, sample.media)
    return sample.ask(f"Caption: {caption}\nQuestion: {question}\nAnswer: {answer}\n{rule}")


def read_scores(text: str) -> float | None:
    """The mean of the four scores in the first JSON object of a text; None unless all are numbers from 1 to 5."""
    found = _OBJECT.search(text)
    try:
        scores = json.loads(found[0]) if found else {}
    except ValueError:
        return None
    values = [scores[name] for name in CRITERIA if type(scores.get(name)) in (int, float)]
    # One by one: NaN, which Python's JSON knows, would pass a test of the least and the greatest.
    return fmean(values) if len(values) == len(CRITERIA) and all(LOW <= value <= HIGH for value in values) else None


async def scores(
    chats: Sequence[Chat], lm: SampleLM, *, retries: int = 3, max_new_tokens: int = 64
) -> list[float | None]:
    """One score per request of `request`, in order.

    Where the greedy answer cannot be read, `retries` answers are drawn and the median of the readable ones counts;
    None where there is none: a score that cannot be read is no low score.
    """
    greedy = Sampling(max_new_tokens=max_new_tokens)
    drawn = Sampling(0.7, max_new_tokens=max_new_tokens)
    first = [read_scores(told.text) for told in await asyncio.gather(*(lm.generate(chat, greedy) for chat in chats))]
    open_at = [at for at, value in enumerate(first) if value is None]
    again = await asyncio.gather(*(lm.generate_n(chats[at], retries, drawn) for at in open_at))
    for at, answers in zip(open_at, again, strict=True):
        read = [value for answer in answers if (value := read_scores(answer.text)) is not None]
        first[at] = median(read) if read else None
    return first


class Scored(NamedTuple):
    """An answer with its score, and the temperature at which it was drawn."""

    score: float
    temperature: float
    answer: Completion

    @property
    def judgement(self) -> Judgement:
        return Judgement("rubric", self.score, f"at temperature {self.temperature:g}")


def best_and_worst(answers: Sequence[Scored], min_gap: float) -> tuple[Scored, Scored] | None:
    """The answers with the highest and the lowest score; None where these are not `min_gap` apart.

    Of equal scores the cooler answer is the better one and the warmer one the worse.
    """
    ranked = sorted(answers, key=lambda each: (each.score, -each.temperature))
    if not ranked or ranked[-1].score - ranked[0].score < min_gap:
        return None
    return ranked[-1], ranked[0]
