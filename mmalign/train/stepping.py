"""One optimizer step: forwards and backwards of its pairs, and what the step reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.train.cache.reference import Measured
from mmalign.train.data.collate import Collator
from mmalign.train.failures import own_code_named, refuse_gradient, refuse_loss, refuse_shape
from mmalign.train.run import Run
from mmalign.train.schedule import MicroBatch, micro_batches
from mmalign.train.step import StepTotals, nonfinite


@dataclass(frozen=True)
class Stepper:
    """Steps of a run. `model` and `optimizer` are as `Ranks.prepare` gives them, `size` pairs make a forward."""

    run: Run
    model: Any
    optimizer: Any
    collate: Collator
    measured: Measured
    size: int

    def step(self, indices: list[int]) -> dict[str, float]:
        """Train on the pairs `indices`; loss, gradient norm and the objective's numbers.

        Raises TrainError, naming the pairs at fault, for a loss or a gradient that is not finite.
        """
        run, ranks = self.run, self.run.ranks
        totals = StepTotals(len(indices), self._tokens(indices))
        sums: dict[str, Tensor] = {}
        is_bad = torch.zeros(len(indices), device=ranks.device)
        run.beside.begin(indices)
        parts = micro_batches(indices, run.kinds, ranks.index, ranks.count, self.size)
        for part in parts:
            with ranks.gathering(self.model, is_last=part is parts[-1]):
                found, bad = self._micro_step(part, totals)
            is_bad[[indices.index(index) for index in part.indices]] += bad
            sums = {name: sums.get(name, torch.zeros_like(value)) + value for name, value in found.items()}
        values, pairs = ranks.totals(sums), [run.rows[index].id for index in indices]
        if not math.isfinite(values["loss"]):
            refuse_loss(pairs, ranks.accelerator.reduce(is_bad, reduction="sum").tolist())
        with run.memory_named("the optimizer's step", indices):
            norm = math.hypot(ranks.step(run.model, self.optimizer), self._step_beside())
        if not math.isfinite(norm):
            refuse_gradient(pairs, lambda place: self._is_finite(indices[place]))
        return {**values, "grad_norm": norm}

    def _tokens(self, indices: Sequence[int]) -> dict[str, int]:
        """Tokens of each side in these pairs."""
        return dict(zip(self.run.sides, self.measured.counts[list(indices)].sum(0).tolist(), strict=True))

    def _step_beside(self) -> float:
        reduce = self.run.ranks.accelerator.reduce
        rate = self.optimizer.param_groups[0]["lr"]
        return self.run.beside.step(
            rate, self.run.config.max_grad_norm, lambda value, how: reduce(value, reduction=how)
        )

    def _is_finite(self, index: int) -> bool:
        """Whether the gradient of one pair alone is; all ranks compute the same."""
        self.optimizer.zero_grad()
        with self.run.ranks.gathering(self.model, is_last=True):
            self._micro_step(MicroBatch([index], 1), StepTotals(1, self._tokens([index])))
        return self.run.ranks.has_finite_gradient(self.run.model)

    def _micro_step(self, part: MicroBatch, totals: StepTotals) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward of some pairs: their share of the step's numbers, and whose loss is none (B,)."""
        run, device = self.run, self.run.ranks.device
        rows = [run.rows[index] for index in part.indices]
        batch = self.collate(rows)
        with run.memory_named("the forward", part.indices, batch):
            given = batch.to(device)
            counted = (torch.arange(len(rows)) < part.num_counted).float().to(device)
            inputs = run.forward.inputs(self.model, given, part.indices, self.measured)
            with own_code_named(run.objective):
                output = run.objective(run.beside.told(inputs))
            refuse_shape(run.objective, output.loss, len(rows))
            run.beside.add(part, output)
            own = run.beside.penalty() * part.num_counted / totals.pairs
            loss = totals.loss(output, given.weight * counted) + own
        with run.memory_named("the backward pass", part.indices, batch):
            run.ranks.backward(loss)
        shares = {name: (value * counted).sum() / totals.pairs for name, value in output.metrics.items()}
        return {"loss": loss.detach(), **shares}, nonfinite(output)
