"""What a training will take, before it is begun: memory by part, operations and time of a step.

A step is run as it will be in training, through the model's own code and this package's, on tensors without data
(`mmalign.train.forecasting.ghost`). So nothing is assumed of a model, and no weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mmalign.objectives import Objective
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import PairBatch
from mmalign.train.forecasting.ghost import Ghosts
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.logps import Wanted, read
from mmalign.train.optimizer import adamw, autocast
from mmalign.train.weights import trainable, training_mode


@dataclass(frozen=True, slots=True)
class Work:
    """Operations: products (a multiplication and an addition are two), bytes read and written, and their number."""

    flops: int
    moved: int
    calls: int

    def times(self, factor: float) -> Work:
        """As much work as `factor` of these."""
        return Work(round(self.flops * factor), round(self.moved * factor), round(self.calls * factor))

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.moved + other.moved, self.calls + other.calls)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of a model: `parameters`, how many of them are `trained`, and bytes at the height of a step.

    `weights`, `optimizer` and `gradients` are what is held of these, `activations` the rest of the `peak`, which is
    that of tensors: an allocator adds some. `micro` is the work of one micro-batch, `step` that of the optimizer, and
    `scoring` that of a forward alone.
    """

    parameters: int
    trained: int
    weights: int
    optimizer: int
    gradients: int
    peak: int
    micro: Work
    step: Work
    scoring: Work

    @property
    def activations(self) -> int:
        return self.peak - self.weights - self.optimizer - self.gradients


def forecast(
    outline: Any, batch: PairBatch, objective: Objective, config: TrainConfig, device: torch.device
) -> Forecast:
    """What one micro-batch like `batch` takes in a training of the model `outline`, which is on the meta device.

    `outline` is changed as training would change it; other models that the objective reads are not counted. Raises
    what the model's code raises where it does more with numbers than to compute with them.
    """
    with torch.device("meta"):
        model = trainable(outline, config)
    training_mode(model)
    head = Head.of(model).frozen() if "divergence" in objective.needs else None
    ghosts = Ghosts(device)
    weights = ghosts.adopt(model)
    if head is not None and head.linear is not Head.of(model).linear:
        weights += ghosts.adopt(head.linear)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(model, config)
    with ghosts:
        # As it is from the second step on: with the optimizer's state.
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        gradients = sum(map(_size, trained))
        optimizer.step()
        optimizer.zero_grad()
        state = ghosts.live - weights
        ghosts.forget()
        with torch.no_grad(), autocast(device, config):
            read(model, batch, Wanted())
        scoring, scoring_peak = _done(ghosts), ghosts.peak
        wanted = Wanted(anchor=None if head is None else _anchor(head, batch, ghosts))
        ghosts.forget()
        with autocast(device, config):
            found = read(model, batch, wanted)
        loss = sum(value.sum() for value in (found.logps, found.divergence) if value is not None)
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        del found, loss
        micro = _done(ghosts)
        height = ghosts.peak
        ghosts.forget()
        optimizer.step()
        step, height = _done(ghosts), max(height, ghosts.peak, scoring_peak)
    return Forecast(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        weights=weights,
        optimizer=state,
        gradients=gradients,
        peak=height,
        micro=micro,
        step=step,
        scoring=scoring,
    )


def _anchor(head: Head, batch: PairBatch, ghosts: Ghosts) -> Anchor:
    """The reference's distributions at the tokens of the first side."""
    tokens = int(batch.mask[batch.rows_of(batch.sides[0])].sum())
    weight: Any = head.linear.weight
    return Anchor(ghosts.ghost(torch.empty(tokens, weight.shape[-1], dtype=weight.dtype, device="meta")), head)


def _done(ghosts: Ghosts) -> Work:
    return Work(ghosts.flops, ghosts.moved, ghosts.calls)


def _size(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()
