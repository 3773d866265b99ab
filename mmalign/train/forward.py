"""From a batch of pairs to what the objective is given: the forwards of policy, reference and other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives import LossInputs, Objective
from mmalign.train.cache.reference import Measured, adapter_off
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import PairBatch
from mmalign.train.logprobs.head import Head
from mmalign.train.logprobs.logps import Anchor, Read, Wanted, completion_logps, completion_states, read
from mmalign.train.optimizer import autocast
from mmalign.train.reward.heads import RewardHead, prompts_of, reads_logps, with_states
from mmalign.train.sources import Sources
from mmalign.train.step import loss_inputs, reference_sides_of
from mmalign.train.tokens import TokenValues
from mmalign.train.weights import training_mode


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The forwards that an objective needs of a model.

    `head` is the reference's, where its distributions are read; `reward` is the head of a reward model, where one is
    trained; `sources` and `tokens` are what other models say. With `adapter_is_new` the model starts as it is without
    its adapter, and is quicker so.
    """

    objective: Objective
    config: TrainConfig
    head: Head | None
    sources: Sources
    tokens: TokenValues
    reward: RewardHead | None = None
    adapter_is_new: bool = False

    @classmethod
    def of(
        cls,
        model: Any,
        objective: Objective,
        config: TrainConfig,
        sources: Sources,
        reward: RewardHead | None = None,
        *,
        adapter_is_new: bool = False,
    ) -> Forward:
        """Those of `model` before its first step."""
        head = Head.of(model).frozen() if "divergence" in objective.needs else None
        tokens = TokenValues.of(objective, config)
        return cls(
            objective=objective,
            config=config,
            head=head,
            sources=sources,
            tokens=tokens,
            reward=reward,
            adapter_is_new=adapter_is_new,
        )

    @property
    def scores_reference(self) -> bool:
        """Whether the reference is computed once, before training."""
        return self._needs_reference and self.config.precompute_reference

    @property
    def reads_states(self) -> bool:
        """Whether hidden states at the answers' last tokens are read."""
        return self.reward is not None or "states" in self.objective.needs

    @property
    def learns(self) -> bool:
        """Whether the model learns; under a gate it does not, only the gate does."""
        return not self._is_gated or reads_logps(self.objective)

    def to(self, device: torch.device) -> None:
        """Take what does not move with the model to `device`."""
        self.sources.to(device)
        if self.head is not None:
            self.head.linear.to(device)

    def inputs(self, model: Any, batch: PairBatch, indices: Sequence[int], measured: Measured) -> LossInputs:
        """What the objective sees of a batch that holds the pairs `indices` of those `measured`."""
        alone = getattr(model, "module", model)  # inside the wrapper that exchanges gradients
        reference: Tensor | None = None
        states: Tensor | None = None
        if measured.logps is not None:
            reference = measured.reference(indices, batch.mask)
            states = None if self.head is None else measured.states(indices).to(reference.device)
        elif self._needs_reference:
            reference, states = self.reference(alone, batch)
            training_mode(alone)
        with autocast(batch.mask.device, self.config), nullcontext() if self.learns else torch.no_grad():
            wanted = Wanted(
                logps=reads_logps(self.objective),
                anchor=None if states is None or self.head is None else Anchor(states, self.head),
                terms=self.sources.terms,
                sources=self.sources.anchors(alone, batch),
                states=self.reads_states,
                inputs=batch.sides if self._is_gated else (),
            )
            found = read(model, batch, wanted)
        values = self.tokens.values(indices, batch.mask, reference)
        return self._told(batch, found, reference, values)

    @torch.no_grad()
    def reference(self, model: Any, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Reference log-probs (N, T): the start of this run before training, else the weights without the adapter.

        Where the objective needs them also the states (M, H) of the chosen side's distributions.
        """
        model.eval()
        keeps_adapter = self.config.precompute_reference and not self.adapter_is_new
        with autocast(batch.mask.device, self.config), nullcontext() if keeps_adapter else adapter_off(model):
            return (completion_logps(model, batch), None) if self.head is None else completion_states(model, batch)

    def _told(
        self, batch: PairBatch, found: Read, reference: Tensor | None, values: Mapping[str, Tensor]
    ) -> LossInputs:
        """What was read, side by side."""
        logps = torch.zeros(batch.mask.shape, device=batch.mask.device) if found.logps is None else found.logps
        inputs = loss_inputs(batch, logps, reference, found.divergence, reference_sides_of(self.objective))
        sides = {
            side: replace(
                one,
                terms={name: value.view(one.mask.shape) for name, value in found.terms.get(side, {}).items()},
                token_values={name: batch.laid(side, value) for name, value in values.items()},
            )
            for side, one in inputs.sides.items()
        }
        inputs = with_states(replace(inputs, sides=sides), batch, found)
        return inputs if self.reward is None else self.reward.scored(inputs, prompts_of(batch, found))

    @property
    def _needs_reference(self) -> bool:
        return bool(reference_sides_of(self.objective)) or self.tokens.need_start

    @property
    def _is_gated(self) -> bool:
        return self.reward is not None and self.reward.spec.name == "gated"
