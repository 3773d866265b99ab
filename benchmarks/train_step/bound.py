"""What the work itself allows: floating-point operations of a plain training, and of one that computes each thing once.

Counted are matrix products: the linear layers of tower, language model, adapters and head, and attention. A frozen
layer's backward costs as much as its forward, an adapter's twice as much, and attention's 2.5 times (its scores are
made again). Nothing is counted for what a kernel or an elementwise step costs beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.head import unwrapped
from mmalign.train.schedule import Order
from mmalign.train.weights import trainable


@dataclass(frozen=True)
class Costs:
    """Operations of one forward: of a picture in the tower, of a token in the language model's layers and in their
    adapters, of a pair of tokens in attention, of a token in the head.
    """

    picture: float
    token: float
    adapters: float
    sight: float
    head: float

    @classmethod
    def of(cls, model: Any, batch: PairBatch) -> Costs:
        """Those of a model with adapters; `batch` holds one picture, or one clip, per row."""
        inner: Any = unwrapped(model)
        decoder, head, text = inner.get_decoder(), inner.get_output_embeddings(), inner.config.get_text_config()
        linear = {name: layer for name, layer in decoder.named_modules() if type(layer) is nn.Linear}
        adapters = 2.0 * sum(layer.weight.numel() for name, layer in linear.items() if "lora_" in name)
        see, names = inner.get_image_features, ("pixel_values", "image_grid_thw")
        if "pixel_values_videos" in batch.inputs:
            see, names = inner.get_video_features, ("pixel_values_videos", "video_grid_thw")
        device = head.weight.device
        media = {name: batch.inputs[name].to(device) for name in names if name in batch.inputs}
        kind = next(inner.parameters()).dtype
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            see(**{name: value.to(kind) if value.is_floating_point() else value for name, value in media.items()})
        width = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        return cls(
            picture=counter.get_total_flops() / len(batch.inputs["input_ids"]),
            token=2.0 * sum(layer.weight.numel() for layer in linear.values()) - adapters,
            adapters=adapters,
            sight=4.0 * width * text.num_hidden_layers,
            head=2.0 * head.weight.numel(),
        )


@dataclass(frozen=True)
class Load:
    """What the forwards of some pairs are about: pictures in the tower, tokens in the language model, pairs of tokens
    that see each other, tokens in the head.
    """

    pictures: float
    tokens: float
    sights: float
    heads: float

    def __add__(self, other: Load) -> Load:
        return Load(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[float, ...]:
        return self.pictures, self.tokens, self.sights, self.heads

    def forward(self, costs: Costs, *, sees: bool = True, adapters: bool = True) -> float:
        """Operations of a forward, which need not have to look at pictures."""
        token = costs.token + (costs.adapters if adapters else 0)
        own = self.tokens * token + self.sights * costs.sight + self.heads * costs.head
        return own + (self.pictures * costs.picture if sees else 0)

    def backward(self, costs: Costs) -> float:
        """Operations of a backward through what is frozen but for adapters."""
        own = self.tokens * (costs.token + 2 * costs.adapters) + self.heads * costs.head
        return own + 2.5 * self.sights * costs.sight


NOTHING = Load(0, 0, 0, 0)


def plain(batch: PairBatch) -> Load:
    """Every answer of a batch in a row of its own, with its own look at the picture; padding is computed, too, and
    where there is some, every token is compared with every other.
    """
    rows, width = len(batch.mask), int(batch.lengths.max())
    is_even = bool((batch.lengths == width).all())
    return Load(rows, rows * width, rows * width**2 / (2 if is_even else 1), float(batch.mask.sum()))


def shared(batch: PairBatch, rows: Sequence[PairRow]) -> Load:
    """Every prompt and picture once for all answers to it, without padding, attention only where something is seen."""
    samples = [row.sample_id for row in rows]
    answers = batch.mask.sum(-1).view(len(batch.sides), -1)
    prompts = batch.lengths - answers
    total = Load(0, 0, 0, float(batch.mask.sum()))
    for name in dict.fromkeys(samples):
        own = [place for place, other in enumerate(samples) if other == name]
        prompt = float(prompts[0, own[0]])
        given = (answers[:, own] - 1).flatten().tolist()  # an answer's last token predicts nothing
        sights = prompt**2 / 2 + sum(prompt * n + n**2 / 2 for n in given)
        total = total + Load(1, prompt + sum(given), sights, 0)
    return total


@dataclass(frozen=True)
class Bounds:
    """How many times as fast a training could be that does the necessary operations only: than TRL's in a first epoch
    and in one with everything cached, and `rows`, then, than with a prompt for every answer.

    `prompt` is in tokens, `tokens` are those of rows of one answer, `flops` the necessary operations, cold and warm.
    """

    prompt: int
    tokens: float
    cold: float
    warm: float
    rows: float
    flops: tuple[float, float]

    @classmethod
    def of(cls, loaded: Loaded, rows: Sequence[PairRow], root: Path, config: TrainConfig) -> Bounds:
        collate = Collator(loaded.renderer, root, MediaLimits())
        order = Order(len(rows), config.batch_size, 1, config.seed)
        steps = [[rows[index] for index in order.batch(step)] for step in range(order.num_steps)]
        batches = [collate(step) for step in steps]
        costs = Costs.of(trainable(loaded.model, config), batches[0])
        each = sum(map(plain, batches), start=NOTHING)
        once = sum((shared(*step) for step in zip(batches, steps, strict=True)), start=NOTHING)
        theirs = each.forward(costs) + each.backward(costs) + each.forward(costs, adapters=False)
        cold = once.forward(costs) + once.backward(costs) + once.forward(costs, sees=False, adapters=False)
        warm = once.forward(costs, sees=False) + once.backward(costs)
        prompt = int(batches[0].lengths[0, 0] - batches[0].mask[0].sum())
        return cls(
            prompt=prompt,
            tokens=each.tokens,
            cold=theirs / cold,
            warm=theirs / warm,
            rows=(each.forward(costs, sees=False) + each.backward(costs)) / warm,
            flops=(cold, warm),
        )
