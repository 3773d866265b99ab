"""From a batch's log-probs to the part of the step's loss that is its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mmalign.objectives import Completions, LossInputs, LossOutput, Objective
from mmalign.pairs import PairRow

if TYPE_CHECKING:  # a recipe is checked without what reads models
    from mmalign.train.data.collate import PairBatch

#: The answers of a pair, in the order of batches; further sides follow by name.
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What the terms of one optimizer step are divided by: its pairs, and each side's tokens (those of all answers
    where it is a list), over all micro-batches and ranks. So the gradient is that of one big batch.
    """

    pairs: int
    tokens: dict[str, int]

    def loss(self, output: LossOutput, weight: Tensor) -> Tensor:
        """This micro-batch's part of the step's loss; `weight` (B,) is the pairs' own, 0 where they do not count."""
        total = (output.loss * weight).sum() / self.pairs
        for side, values in output.pooled.items():
            total = total + (values * weight).sum() / max(1, self.tokens[side])
        return total


def in_order(sides: Iterable[str]) -> tuple[str, ...]:
    """Different sides in the order of batches."""
    return tuple(sorted(set(sides), key=lambda side: (SIDES.index(side) if side in SIDES else len(SIDES), side)))


def sides_of(objective: Objective, rows: Sequence[PairRow] = ()) -> tuple[str, ...]:
    """Those of the answers of pairs that an objective looks at.

    Among them are the sources of whole distributions ("logits:no_history") that are a side of the `rows`: the policy in
    another context.
    """
    plain = [side for side in SIDES if side in objective.needs]
    sources = [name for name in _named(objective, "logits") if rows and name in rows[0].sides]
    return in_order([*plain, *_named(objective, "side"), *sources])


def reference_sides_of(objective: Objective) -> tuple[str, ...]:
    """Those of the sides whose log-probs under the reference an objective reads."""
    plain = [side for side in SIDES if side in objective.needs and "reference" in objective.needs]
    return in_order([*plain, *_named(objective, "reference")])


def values_of(objective: Objective) -> tuple[str, ...]:
    """Those of the numbers of pairs that an objective reads, by name."""
    return tuple(sorted(_named(objective, "value")))


def loss_inputs(
    batch: PairBatch,
    policy: Tensor,
    reference: Tensor | None,
    divergence: Tensor | None = None,
    scored: Collection[str] | None = None,
) -> LossInputs:
    """What an objective sees of a batch.

    `policy` and `reference` (N, T) hold the sides one after the other, `divergence` (B, T) is that of the first side.
    The reference was asked about the sides `scored`, or about all.
    """
    sides = {}
    for index, side in enumerate(batch.sides):
        told = None if scored is not None and side not in scored else reference
        sides[side] = Completions(
            token_logps=batch.laid(side, policy),
            mask=batch.laid(side, batch.mask),
            reference_token_logps=None if told is None else batch.laid(side, told),
            changed=batch.laid(side, batch.changed),
            token_divergence=divergence if index == 0 else None,
        )
    return LossInputs(sides=sides, p=batch.p, values=batch.values)


def nonfinite(output: LossOutput) -> Tensor:
    """Of which pairs (B,) the loss is no number."""
    bad = ~output.loss.detach().isfinite()
    for values in output.pooled.values():
        bad = bad | ~values.detach().isfinite()
    return bad


def _named(objective: Objective, kind: str) -> list[str]:
    """The names of the needs "kind:name"."""
    return [need.partition(":")[2] for need in objective.needs if need.startswith(f"{kind}:")]
