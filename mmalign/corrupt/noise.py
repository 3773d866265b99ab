"""Damage by noise, reproducible from a recorded seed.

Noise comes from NumPy's `RandomState`, the one generator whose stream NumPy promises never to change (NEP 19).
In a clip every frame has noise of its own, as a camera's sensor gives it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmalign.corrupt.registry import Params, check_span, check_whole, corruption
from mmalign.types import Row

DIFFUSION_STEPS = 1000


@corruption("gaussian_noise", seed_per_frame=True)
@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Independent normal noise on every channel; `sigma` in levels of 0..255. Ours."""

    sigma: tuple[float, float] = (30.0, 90.0)

    def __post_init__(self) -> None:
        check_span("gaussian_noise.sigma", self.sigma, 1, 1000)

    def draw(self, rng: random.Random) -> Row:
        return {"sigma": rng.uniform(*self.sigma), "seed": rng.getrandbits(32)}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        yield from ({**params, "sigma": params["sigma"] * 2**doubling} for doubling in range(8))

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        return _picture(_levels(image) + params["sigma"] * _normal(image, params["seed"]))


@corruption("diffusion_noise", seed_per_frame=True)
@dataclass(frozen=True, kw_only=True)
class DiffusionNoise:
    """The forward step of a diffusion model: sqrt(a) x + sqrt(1 - a) noise, x in -1..1 (as in VCD and POVID).

    `a` is the product of 1 - beta up to `step`, betas a sigmoid from 1e-5 to 0.005 over 1000 steps, as in VCD's code.
    There it is added to the normalised tensor; here to the pixels, cut back to 0..255.
    """

    step: tuple[int, int] = (500, 500)

    def __post_init__(self) -> None:
        check_span("diffusion_noise.step", self.step, 1, DIFFUSION_STEPS - 1)
        for end in self.step:
            check_whole("diffusion_noise.step", end, 1, DIFFUSION_STEPS - 1)

    def draw(self, rng: random.Random) -> Row:
        return {"step": rng.randint(*self.step), "seed": rng.getrandbits(32)}

    @staticmethod
    def attempts(image: Image.Image, params: Params) -> Iterator[Row]:
        yield dict(params)
        yield from ({**params, "step": step} for step in range(params["step"] + 100, DIFFUSION_STEPS, 100))

    @staticmethod
    def apply(image: Image.Image, params: Params) -> Image.Image:
        kept = kept_signal()[params["step"]]
        x = _levels(image) / 127.5 - 1
        noisy = np.sqrt(kept) * x + np.sqrt(1 - kept) * _normal(image, params["seed"])
        return _picture((noisy + 1) * 127.5)


@cache
def kept_signal() -> NDArray[np.float64]:
    """The share of the signal's variance that is left after each step, shape (1000,)."""
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, DIFFUSION_STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    return np.cumprod(1 - betas).astype(np.float64)


def _levels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image).astype(np.float64)


def _normal(image: Image.Image, seed: int) -> NDArray[np.float64]:
    return np.random.RandomState(seed).standard_normal((image.height, image.width, 3))


def _picture(levels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8))
