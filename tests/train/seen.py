"""Batches whose media were seen before, and counts of what a run still computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.cache.encoded import ContextEncoder
from mmalign.train.cache.keys import template_key
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.head import unwrapped
from mmalign.train.weights import trainable, training_mode
from tests.train.rows import quick

LIMITS = MediaLimits()


def trained(loaded: Loaded, **changes: Any) -> Any:
    """The model with the weights set to be trained that `changes` of the settings say; adapters are no longer zero."""
    torch.manual_seed(0)
    model = trainable(loaded.model, quick(**changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    training_mode(model)
    return model


def encoder_of(loaded: Loaded, model: Any, config: TrainConfig | None = None) -> ContextEncoder | None:
    """What sees media once for a model in training."""
    settings = config or quick()
    return ContextEncoder.of(model, loaded.renderer, settings, processor=template_key(loaded), limits=LIMITS)


def seen_batches(
    loaded: Loaded, model: Any, rows: Sequence[PairRow], root: Path = Path(), config: TrainConfig | None = None
) -> tuple[PairBatch, PairBatch, PairBatch]:
    """The same pairs with pixels and a row per answer, with features and a row per answer, and a row per context."""
    plain = Collator(loaded.renderer, root, LIMITS)
    encoder = encoder_of(loaded, model, config)
    assert encoder is not None
    apart = replace(plain, encoder=encoder)
    return plain(rows), apart(rows), replace(apart, shares=True)(rows)


@contextmanager
def counted(model: Any) -> Iterator[list[str]]:
    """Within the block: one entry for every pass of the tower, whether for pictures or clips."""
    inner: Any = unwrapped(model)
    towers = [getattr(inner.base_model, name, None) for name in ("vision_tower", "visual", "vision_model")]
    (tower,) = (tower for tower in towers if tower is not None)
    passes: list[str] = []
    handle = tower.register_forward_pre_hook(lambda *given: passes.append("pass"))
    try:
        yield passes
    finally:
        handle.remove()


def counting(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """The function, which adds an entry to `calls` whenever it is called."""

    def call(*given: Any, **named: Any) -> Any:
        calls.append(function.__name__)
        return function(*given, **named)

    return call
