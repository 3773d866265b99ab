"""Fixtures of the objectives' specification: sums per side, and tokens, as inputs of an objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.objectives import Completions, LossInputs

Rows = Sequence[Sequence[float]]


def padded(rows: Rows, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as float64 values (B, T), 0 on padding, and their mask."""
    length = length or max(map(len, rows))
    values = torch.zeros(len(rows), length, dtype=torch.float64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[index, : len(row)] = True
    return values, mask


def side(policy: Rows, reference: Rows | None, changed: Rows | None = None, length: int | None = None) -> Completions:
    values, mask = padded(policy, length)
    return Completions(
        token_logps=values,
        mask=mask,
        reference_token_logps=None if reference is None else padded(reference, length)[0],
        changed=None if changed is None else padded(changed, length)[0].bool(),
    )


def pairs(chosen: Completions, rejected: Completions, p: Sequence[float] | None = None) -> LossInputs:
    size = chosen.mask.shape[0]
    prob = torch.ones(size, dtype=torch.float64) if p is None else torch.tensor(p, dtype=torch.float64)
    return LossInputs(sides={"chosen": chosen, "rejected": rejected}, p=prob)


def spread(totals: Sequence[float], lengths: Sequence[int]) -> Rows:
    """Token log-probs that sum to `totals`."""
    return [[total / length] * length for total, length in zip(totals, lengths, strict=True)]


def f1(p: Sequence[float] | None = None) -> LossInputs:
    """Sums L_w = [-12, -20], L_l = [-15, -18], references [-13, -19.5] and [-14, -19]; D = [2, -1.5]."""
    n_w, n_l = (4, 8), (5, 6)
    chosen = side(spread((-12, -20), n_w), spread((-13, -19.5), n_w))
    return pairs(chosen, side(spread((-15, -18), n_l), spread((-14, -19), n_l)), p)


def sums(chosen: float, chosen_ref: float, rejected: float, rejected_ref: float) -> LossInputs:
    """One pair given by four sums."""
    return pairs(side([[chosen]], [[chosen_ref]]), side([[rejected]], [[rejected_ref]]))


def random_pairs(seed: int, size: int = 4, length: int = 7) -> LossInputs:
    """Random log-probs and masks, and random soft labels; the chosen side's log-probs require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def made(requires_grad: bool) -> Completions:
        lengths = torch.randint(1, length + 1, (size, 1), generator=generator)
        mask = torch.arange(length) < lengths
        values = -torch.rand(size, length, generator=generator, dtype=torch.float64) * 3
        reference = -torch.rand(size, length, generator=generator, dtype=torch.float64) * 3
        changed = torch.rand(size, length, generator=generator) < 0.5
        return Completions(
            token_logps=(values * mask).requires_grad_(requires_grad),
            mask=mask,
            reference_token_logps=reference * mask,
            changed=changed & mask,
        )

    p = torch.rand(size, generator=generator, dtype=torch.float64)
    return LossInputs(sides={"chosen": made(True), "rejected": made(True)}, p=p)
