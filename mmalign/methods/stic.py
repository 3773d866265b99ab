"""STIC, stage 1 (Deng et al., NeurIPS 2024, arXiv 2405.19716): describe well, describe badly, prefer the first.

The good description comes from a careful step-by-step prompt. The bad one comes either from a prompt that tempts the
model to imagine things, or from a damaged picture. Both are stored under one plain prompt and the clean picture. The
authors' released code never damages the picture; here the damaged one is what the model sees. Departures from the
paper: docs/methods/stic.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

from mmalign.corrupt import apply, check_corruptions, draw
from mmalign.errors import NoPair
from mmalign.lm.bound import SampleLM
from mmalign.methods import check_filled, method
from mmalign.text.prompts import IMAGINE, PLAIN, STEP_BY_STEP, worded
from mmalign.types import Completion, Media, Pair, Sample, Sampling


@method("stic", media=("image", "video"), paper="Deng et al. 2024, arXiv 2405.19716")
class STIC:
    """A careful description against one that was tempted to imagine or looked at a damaged picture.

    Args:
        p_bad_prompt: Share of rejected sides from a tempting prompt; the others see a damaged picture.
        corruptions: Kinds of damage, equally likely; those for clips fit clips only.
        short_side: Pixels left on the shorter side by low_resolution.
        brightness: Range of the brightness factor of color_jitter.
        hue: Range of the hue shift of color_jitter, in shares of the hue circle.
        temperature: Of all descriptions.
        max_new_tokens: Token limit of a description; a better side that reaches it gives no pair.
        good_prompt: What the better side is asked. About clips the default prompts say video, your own stay.
        plain_prompts: Requests one of which is stored with the pair, and asked about a damaged picture.
        bad_prompts: Requests for things that are plausible but absent.
    """

    p_bad_prompt: float = 0.5
    corruptions: tuple[str, ...] = ("low_resolution", "color_jitter")
    short_side: int = 20
    brightness: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.3, 0.3)
    temperature: float = 0.2
    max_new_tokens: int = 1024
    good_prompt: str = STEP_BY_STEP
    plain_prompts: tuple[str, ...] = PLAIN
    bad_prompts: tuple[str, ...] = IMAGINE

    def __post_init__(self) -> None:
        if not 0 <= self.p_bad_prompt <= 1:
            raise ValueError(f"p_bad_prompt: {self.p_bad_prompt} is no probability; use 0 to 1")
        check_corruptions(self.corruptions, self.ranges)
        check_filled(self, "plain_prompts", "bad_prompts")
        _ = self.drawn  # wrong values are refused before the run starts

    @property
    def drawn(self) -> Sampling:
        return Sampling(self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def ranges(self) -> dict[str, dict[str, Any]]:
        return {
            "low_resolution": {"short_side": self.short_side},
            "color_jitter": {"brightness": self.brightness, "hue": self.hue},
        }

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        good, plain = worded(self.good_prompt, sample.media), worded(rng.choice(self.plain_prompts), sample.media)
        if rng.random() < self.p_bad_prompt:
            source, asked, media = "bad_prompt", worded(rng.choice(self.bad_prompts), sample.media), sample.media
        else:
            source, asked = rng.choice(self.corruptions), plain
            media = self.damaged(sample.media, source, rng)
        chosen, rejected = await asyncio.gather(
            lm.generate(sample.ask(good), self.drawn),
            lm.generate(sample.ask(asked).with_media(media), self.drawn),
        )
        self.check(chosen, rejected)
        yield Pair(
            sample.ask(plain),
            chosen,
            rejected,
            source=source,
            provenance={
                "chosen_prompt": good,
                "rejected_prompt": asked,
                "rejected_media": [medium.ref.to_row() for medium in media],
                "seeds": [chosen.seed, rejected.seed],
            },
        )

    def damaged(self, media: tuple[Media, ...], kind: str, rng: random.Random) -> tuple[Media, ...]:
        """Every medium with damage of one kind, each drawn for itself."""
        return tuple(apply(medium, draw(kind, rng, **self.ranges.get(kind, {}))) for medium in media)

    def check(self, chosen: Completion, rejected: Completion) -> None:
        """Raise NoPair for a pair that teaches nothing or something wrong."""
        if not chosen.text.strip() or not rejected.text.strip():
            raise NoPair("a description is empty")
        if chosen.text.casefold().split() == rejected.text.casefold().split():
            raise NoPair("both descriptions are equal")
        if chosen.finish == "length":
            raise NoPair("the better description was cut off at the token limit")
