"""From a batch of pairs to what the objective is given: the forwards of policy and reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives import LossInputs, Objective
from mmalign.train.collate import PairBatch
from mmalign.train.config import TrainConfig
from mmalign.train.head import Head
from mmalign.train.logps import Anchor, completion_logps, completion_states, completion_terms
from mmalign.train.optimizer import autocast
from mmalign.train.reference import Measured, adapter_off
from mmalign.train.step import loss_inputs
from mmalign.train.weights import training_mode


@dataclass(frozen=True)
class Forward:
    """The forwards that an objective needs of a model; `head` is the reference's, where its distributions are read."""

    objective: Objective
    config: TrainConfig
    head: Head | None

    @classmethod
    def of(cls, model: Any, objective: Objective, config: TrainConfig) -> Forward:
        """Those of `model` before its first step."""
        diverges = "divergence" in objective.needs
        return cls(objective, config, Head.of(model).frozen() if diverges else None)

    @property
    def scores_reference(self) -> bool:
        """Whether the reference is computed once, before training."""
        return "reference" in self.objective.needs and self.config.precompute_reference

    def to(self, device: torch.device) -> None:
        """Take the reference's head to `device`."""
        if self.head is not None:
            self.head.linear.to(device)

    def inputs(self, model: Any, batch: PairBatch, indices: Sequence[int], measured: Measured) -> LossInputs:
        """What the objective sees of a batch that holds the pairs `indices` of those `measured`."""
        reference: Tensor | None = None
        states: Tensor | None = None
        if measured.logps is not None:
            reference = measured.reference(indices, batch.mask)
            states = None if self.head is None else measured.states(indices).to(reference.device)
        elif "reference" in self.objective.needs:
            alone = getattr(model, "module", model)  # inside the wrapper that exchanges gradients
            reference, states = self.reference(alone, batch)
            training_mode(alone)
        with autocast(batch.mask.device, self.config):
            if states is None:
                return loss_inputs(batch, completion_logps(model, batch), reference)
            assert self.head is not None
            policy, divergence = completion_terms(model, batch, Anchor(states, self.head))
        return loss_inputs(batch, policy, reference, divergence)

    @torch.no_grad()
    def reference(self, model: Any, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Reference log-probs (N, T): the start of this run before training, else the weights without the adapter.

        Where the objective needs them also the states (M, H) of the chosen side's distributions.
        """
        model.eval()
        is_start = self.config.precompute_reference
        with autocast(batch.mask.device, self.config), nullcontext() if is_start else adapter_off(model):
            return (completion_logps(model, batch), None) if self.head is None else completion_states(model, batch)
