"""Does the model stand by a text? Each sentence is asked by itself, with the media, in a conversation of its own."""

from __future__ import annotations

import asyncio

from mmalign.judge.claims import SentenceClaims
from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import YES_NO
from mmalign.types import Judgement, Sample


async def stands_by(sample: Sample, text: str, lm: SampleLM) -> Judgement:
    """P(yes) of the sentence that the model believes least; None where the text states nothing."""
    claims = SentenceClaims().read(text, sample.media)
    choices = await asyncio.gather(*(lm.choose(sample.ask(claim.question), YES_NO) for claim in claims))
    beliefs = [(choice.probabilities[0], claim.text) for choice, claim in zip(choices, claims, strict=True)]
    raw = {"form": "open", "sentences": [{"text": said, "p_yes": p_yes} for p_yes, said in beliefs]}
    if not beliefs:
        return Judgement("sentences", None, "no sentence states anything", raw)
    least, said = min(beliefs)
    return Judgement("sentences", least, f"believed least: {said!r}, P(yes)={least:.2f}", raw)
