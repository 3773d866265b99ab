"""From a batch's log-probs to the part of the step's loss that is its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign.errors import TrainError
from mmalign.objectives import Completions, LossInputs, LossOutput, Objective
from mmalign.train.collate import PairBatch

#: The answers of a pair, in the order of batches.
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What the terms of one optimizer step are divided by: its pairs, and each side's tokens, over all micro-batches
    and ranks. So the gradient is that of one big batch.
    """

    pairs: int
    tokens: dict[str, int]

    def loss(self, output: LossOutput, weight: Tensor) -> Tensor:
        """This micro-batch's part of the step's loss; `weight` (B,) is the pairs' own, 0 where they do not count."""
        total = (output.loss * weight).sum() / self.pairs
        for side, values in output.pooled.items():
            total = total + (values * weight).sum() / max(1, self.tokens[side])
        return total


def sides_of(objective: Objective) -> tuple[str, ...]:
    """Those of a pair's answers that an objective looks at."""
    return tuple(side for side in SIDES if side in objective.needs)


def loss_inputs(
    batch: PairBatch, policy: Tensor, reference: Tensor | None, divergence: Tensor | None = None
) -> LossInputs:
    """What an objective sees of a batch.

    `policy` and `reference` (N, T) hold the sides one after the other, `divergence` (B, T) is that of the first side.
    """
    size = len(batch.ids)
    sides = {}
    for index, side in enumerate(batch.sides):
        own = slice(index * size, (index + 1) * size)
        sides[side] = Completions(
            token_logps=policy[own],
            mask=batch.mask[own],
            reference_token_logps=None if reference is None else reference[own],
            changed=batch.changed[own],
            token_divergence=divergence if index == 0 else None,
        )
    return LossInputs(sides=sides, p=batch.p)


def refuse_nonfinite(output: LossOutput, pairs: tuple[str, ...]) -> None:
    """Raise TrainError that names the pairs whose loss is no number."""
    bad = ~output.loss.detach().isfinite()
    for values in output.pooled.values():
        bad = bad | ~values.detach().isfinite()
    if bad.any():
        named = ", ".join(pair for pair, is_bad in zip(pairs, bad.tolist(), strict=True) if is_bad)
        raise TrainError(
            f"the loss is not finite at pair {named}; lower train.learning_rate, try train.precision fp32, or take the "
            "pair out"
        )
