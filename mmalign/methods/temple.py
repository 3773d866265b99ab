"""TEMPLE's pairs (Li et al., AAAI 2026, arXiv 2503.16929): a video told as it is against one with time damaged.

The clip is cut into parts, and parts are dropped, reversed or shuffled in blocks. What the model tells of the whole is
chosen, what it tells of the damaged list is rejected. The ratio m says how strong the damage is, and so the stage of a
curriculum: 16 is the strongest and easiest and comes first. Departures from the paper: docs/methods/temple.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from mmalign.corrupt.curriculum import Kind, Order, Telling, orders
from mmalign.corrupt.framemap import looks_of
from mmalign.errors import MediaError, NoPair, SampleError
from mmalign.lm.bound import SampleLM
from mmalign.media.parts import parts
from mmalign.methods import check_filled, check_least, method
from mmalign.text.captions import FIRST_PART, NEXT_PART, WHOLE, bare_caption, numbered, says_something
from mmalign.text.prompts import TELL
from mmalign.types import Chat, Clip, Completion, Message, Pair, Sample, Sampling


@method("temple", media="video", paper="Li et al. 2025, arXiv 2503.16929")
class TEMPLE:
    """What the model tells of a clip against what it tells when parts of it are dropped, reversed or shuffled.

    Args:
        level: What is damaged: "caption" (the list of the parts' captions, as in the released code), "clip" (the list
            of the parts themselves) or "video" (the frames).
        kinds: Kinds of damage, one pair each; "none" tells the same undamaged list again, for a control.
        ratios: How strong the damage is: blocks have a 1/ratio of the parts. One stage each, the largest first.
        num_clips: Parts of equal length that the clip is cut into; fewer where it has not `clip_frames` for each.
        clip_frames: Frames that are shown of a part ("caption", "clip").
        min_clips: Fewest parts, or frames with "video"; shorter clips give no pair.
        temperature: Of everything told of the whole video.
        repetition_penalty: Of the same.
        max_new_tokens: Token limit of the same; what reaches it gives no pair.
        caption_tokens: Token limit of a part's caption.
        prompts: Requests that a pair is stored with, drawn per pair; with "clip" and "video" one is asked, too.
        shorter_drops: Of "drop" keep only pairs whose rejected side is shorter, in characters.
        max_length_ratio: Of the other kinds keep only pairs of which neither side is this much longer.
    """

    level: Literal["caption", "clip", "video"] = "caption"
    kinds: tuple[Kind, ...] = ("drop", "reverse", "shuffle")
    ratios: tuple[int, ...] = (16, 8, 4, 2)
    num_clips: int = 16
    clip_frames: int = 2
    min_clips: int = 4
    temperature: float = 0.7
    repetition_penalty: float = 1.05
    max_new_tokens: int = 8192
    caption_tokens: int = 2048
    prompts: tuple[str, ...] = TELL
    shorter_drops: bool = True
    max_length_ratio: float = 1.5

    def __post_init__(self) -> None:
        check_least(self, num_clips=2, clip_frames=1, min_clips=2, caption_tokens=1, max_length_ratio=1)
        check_filled(self, "kinds", "ratios", "prompts")
        if min(self.ratios) < 2:
            raise ValueError(f"ratios: {min(self.ratios)} damages nothing; use 2 or more")
        if self.level != "video" and self.min_clips > self.num_clips:
            raise ValueError(f"min_clips: {self.min_clips} are more than num_clips ({self.num_clips}) ever gives")
        _ = self.telling  # wrong values are refused before the run starts

    @property
    def telling(self) -> Sampling:
        return Sampling(self.temperature, 1.0, 0, self.repetition_penalty, self.max_new_tokens)

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair | NoPair]:
        looks, tell = await self.material(sample, lm, rng)
        asked = []
        for order in orders(looks, self.kinds, self.ratios, rng):
            try:
                asked.append((order, tell(order)))
            except MediaError:
                yield NoPair(f"{order.kind}: the damage cannot be seen")
        chats = [tell(Order("none", 0, range(len(looks)))), *(chat for _, chat in asked)]
        chosen, *others = await asyncio.gather(*(lm.generate(chat, self.telling) for chat in chats))
        if chosen.finish == "length" or not says_something(chosen.text):
            raise NoPair("what is told of the clean clip is unusable")
        for (order, chat), rejected in zip(asked, others, strict=True):
            if reason := self.refused(order.kind, chosen.text, rejected):
                yield NoPair(f"{order.kind}: {reason}")
                continue
            yield Pair(
                sample.ask(sample.prompt or rng.choice(self.prompts)),
                chosen,
                rejected,
                source=order.kind,
                stage=sorted(self.ratios, reverse=True).index(order.ratio),
                provenance={
                    "level": self.level,
                    "ratio": order.ratio,
                    "order": list(order.places),
                    "rejected_prompt": chat.prompt,
                    "rejected_media": [medium.ref.to_row() for medium in chat.media],
                    "longer_by": len(chosen.text) - len(rejected.text),
                    "seeds": [chosen.seed, rejected.seed],
                },
            )

    async def material(self, sample: Sample, lm: SampleLM, rng: random.Random) -> tuple[Sequence[Hashable], Telling]:
        """What each part (or frame) looks like where it is told, and the request to tell them in a given order."""
        clip = sample.media[0] if len(sample.media) == 1 else None
        if not isinstance(clip, Clip):
            raise SampleError(f"temple needs one clip per sample, this one has {len(sample.media)} media")
        most, size = (len(clip.images), 1) if self.level == "video" else (self.num_clips, self.clip_frames)
        if (num := min(most, len(clip.images) // size)) < self.min_clips:
            raise NoPair(f"the clip has fewer than {self.min_clips * size} frames, {self.min_clips} parts of {size}")
        prompt = sample.prompt or rng.choice(self.prompts)
        if self.level == "video":
            return looks_of([frame] for frame in clip.images), lambda o: sample.ask(prompt).with_media([o.of(clip)])
        cut = parts(clip, num, self.clip_frames)
        if self.level == "clip":
            shown = looks_of(part.images for part in cut)
            return shown, lambda order: replace(sample, media=tuple(order.among(cut))).ask(prompt)
        captions = await self.captions(cut, lm)
        return captions, lambda order: ask(WHOLE.format(captions=numbered(order.among(captions))))

    async def captions(self, cut: Sequence[Clip], lm: SampleLM) -> list[str]:
        """One caption per part; from the second on the part before is shown, too."""
        greedy = Sampling(max_new_tokens=self.caption_tokens)
        chats = [ask(FIRST_PART, cut[0]), *(ask(NEXT_PART, *two) for two in pairwise(cut))]
        captions = [bare_caption(told.text) for told in await asyncio.gather(*(lm.generate(c, greedy) for c in chats))]
        if not all(map(says_something, captions)):
            raise NoPair("the caption of a part is unusable")
        return captions

    def refused(self, kind: Kind, chosen: str, rejected: Completion) -> str:
        """Why these two make no pair, or an empty text."""
        if rejected.finish == "length" or not says_something(rejected.text):
            return "what is told of the damaged clip is unusable"
        if chosen.strip() in rejected.text:
            return "the chosen text is part of the rejected one"
        short, long = sorted((len(chosen), len(rejected.text)))
        if kind == "drop" and self.shorter_drops and len(chosen) <= len(rejected.text):
            return "the rejected text is not shorter"
        return "the lengths differ too much" if kind != "drop" and long > self.max_length_ratio * short else ""


def ask(prompt: str, *media: Clip) -> Chat:
    return Chat((Message("user", (*media, prompt)),))
