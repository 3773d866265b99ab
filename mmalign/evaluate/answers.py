"""Ask a model for descriptions of items, greedily, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mmalign.evaluate.items import Item
from mmalign.lm.protocol import LM
from mmalign.types import Sampling


async def describe(lm: LM, items: Sequence[Item], prompt: str, max_new_tokens: int) -> list[str]:
    """One greedy answer per item, in order."""
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    answers = await asyncio.gather(*(lm.generate(item.sample.ask(prompt), sampling, seed=0) for item in items))
    return [answer.text for answer in answers]
