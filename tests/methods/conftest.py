"""What the tests of all methods share: a picture and a clip of noise, and running a method over one sample."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.types import Clip, Frames, MediaRef, Pair, Picture, Sample

Run = Callable[..., Awaitable[list[Pair]]]


@pytest.fixture
def picture() -> Picture:
    pixels = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels), MediaRef("noise.png", sha256="ab" * 32))


@pytest.fixture
def make_clip() -> Callable[[int], Clip]:
    """Clips of so many frames of noise, two a second, every frame another one."""

    def make(num: int) -> Clip:
        pixels = np.random.default_rng(num).integers(0, 256, (num, 24, 32, 3), dtype=np.uint8)
        times = tuple(at / 2 for at in range(num))
        frames = Frames(tuple(10 * at for at in range(num)), times, 20.0, 10 * num)
        return Clip(tuple(map(Image.fromarray, pixels)), times, MediaRef("noise.mp4", "video", "cd" * 32, (), frames))

    return make


@pytest.fixture
def filmed(make_clip: Callable[[int], Clip]) -> Sample:
    """A sample with a clip of 16 frames."""
    return Sample("filmed", (make_clip(16),))


@pytest.fixture
def sample(picture: Picture) -> Sample:
    return Sample("noise", (picture,))


@pytest.fixture
def run() -> Run:
    """Run a method on a sample as the engine does: a bound model, a generator per sample, all pairs collected."""

    async def run(method: Any, sample: Sample, lm: ScriptedLM, *more: Any, seed: int = 0) -> list[Pair]:
        bound = SampleLM(lm, sample_id=sample.id, seed=seed)
        return [pair async for pair in method.pairs(sample, bound, random.Random(f"{seed}/{sample.id}"), *more)]

    return run
