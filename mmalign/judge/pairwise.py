"""The pairwise judge: which of two answers is true to the media, asked in both orders against the bias of position."""

from __future__ import annotations

import asyncio
from typing import Final

from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import Option
from mmalign.text.prompts import for_media
from mmalign.types import Judgement, Sample

#: The wording is ours.
WHICH: Final = "Which answer is true to the picture? Answer A or B."
LETTERS: Final[tuple[Option, Option]] = (("A",), ("B",))


async def prefers(sample: Sample, question: str, answer: str, other: str, lm: SampleLM) -> Judgement:
    """How sure the model is of `answer` against `other`: the lower of its probabilities shown first and shown second.

    Above .5 it wins in both orders. `raw` holds both.
    """

    def shown(first: str, second: str) -> str:
        return f"Question: {question}\nAnswer A: {first}\nAnswer B: {second}\n{for_media(WHICH, sample.media)}"

    one, two = await asyncio.gather(
        lm.choose(sample.ask(shown(answer, other)), LETTERS), lm.choose(sample.ask(shown(other, answer)), LETTERS)
    )
    wins = one.probabilities[0], two.probabilities[1]
    reason = f"P(better)={wins[0]:.2f} shown first, {wins[1]:.2f} shown second"
    return Judgement("pairwise", min(wins), reason, {"first": wins[0], "second": wins[1]})
