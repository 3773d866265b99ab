"""Damage by another clip: a part of one clip, or all of it, shows what happens in another. Ours."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image, ImageOps

from mmalign.corrupt.registry import Opener, Params, apply, check_span, corruption, draw
from mmalign.errors import MediaError, RecipeError
from mmalign.types import Clip, Corruption, MediaRef, Row


@corruption("clip_swap", media="video")
@dataclass(frozen=True, kw_only=True)
class ClipSwap:
    """A random part of the clip, a `share` of its frames, replaced by frames of another clip (`mmalign.corrupt.swap`).

    Recorded are the reference of the `other` clip, `start` and `stop` of the part, and in `other_frames` for every
    place in the clip the corresponding one in the other clip. Frames of another size are scaled until they cover the
    clip's and cut around their middle.
    """

    needs_other: ClassVar[bool] = True
    share: tuple[float, float] = (0.25, 1.0)

    def __post_init__(self) -> None:
        check_span("clip_swap.share", self.share, 0.001, 1)

    def draw(self, rng: random.Random) -> Row:
        return {"share": rng.uniform(*self.share), "at": rng.random()}

    @staticmethod
    def attempts(clip: Clip, params: Params) -> Iterator[Row]:
        if "other" not in params:
            raise RecipeError("corruption clip_swap: needs another clip, which mmalign.corrupt.swap takes")
        if "start" in params:
            yield dict(params)
            return
        num, share = len(clip.images), params["share"]
        taken = max(1, round(share * num))
        while True:
            start = round(params["at"] * (num - taken))
            yield {**params, "share": share, "start": start, "stop": start + taken}
            if taken == num:
                return
            taken = min(2 * taken, num)
            share = taken / num

    @staticmethod
    def apply(clip: Clip, params: Params, opener: Opener | None) -> tuple[Sequence[Image.Image], Sequence[float]]:
        if opener is None:
            raise ValueError("clip_swap opens another clip, for which `apply` needs an `opener`")
        other = opener(MediaRef.from_row(params["other"]))
        places, part = params["other_frames"], range(params["start"], params["stop"])
        if not isinstance(other, Clip) or len(places) != len(clip.images) or max(places) >= len(other.images):
            raise MediaError(f"{clip.ref.path}: its recorded swap with {other.ref.path} does not fit their frames")
        size = clip.images[0].size
        images = [
            _fitted(other.images[places[at]], size) if at in part else image for at, image in enumerate(clip.images)
        ]
        return images, clip.times


def swap(clip: Clip, other: Clip, rng: random.Random, **ranges: Any) -> Clip:
    """`clip` with a part of its frames, or all of them, replaced by those of `other` at the same share of its length.

    What is recorded names `other` by its reference: `apply` with an `opener` gives the same pixels again. `ranges`
    are those of `clip_swap`: `share=(1, 1)` replaces everything. Raises MediaError when both clips look the same.
    """
    drawn = draw("clip_swap", rng, **ranges)
    num = len(clip.images)
    places = [place * len(other.images) // num for place in range(num)]
    params = {**drawn.params, "other": other.ref.to_row(), "other_frames": places}
    return apply(clip, Corruption(drawn.name, params), opener=lambda _: other)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR)
