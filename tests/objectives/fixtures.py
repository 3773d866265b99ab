"""Fixtures of the objectives' specification: sums per side, and tokens, as inputs of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def tensor(*rows: object) -> Tensor:
    """Rows of numbers as float64."""
    return torch.tensor(rows, dtype=torch.float64)


def close(values: Tensor, expected: Sequence[object] | float, tolerance: float = 6e-7) -> None:
    """The specification prints six digits."""
    wanted = torch.tensor(expected, dtype=values.dtype)
    torch.testing.assert_close(values.detach(), wanted, atol=tolerance, rtol=0.0)


def given(inputs: LossInputs, **more: Completions | Tensor) -> LossInputs:
    """The inputs with more sides and values, told apart by their type."""
    sides = {name: value for name, value in more.items() if isinstance(value, Completions)}
    values = {name: value for name, value in more.items() if isinstance(value, Tensor)}
    return replace(inputs, sides={**inputs.sides, **sides}, values={**inputs.values, **values})


def summed(policy: Tensor, reference: Tensor | None = None, lengths: Tensor | None = None) -> Completions:
    """A side with these sums (...) of log-probs, in one token or spread over `lengths` (...) tokens."""
    lengths = torch.ones_like(policy) if lengths is None else lengths
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)

    def spread_out(sums: Tensor) -> Tensor:
        return (sums / lengths.clamp(min=1)).unsqueeze(-1) * mask

    return Completions(
        token_logps=spread_out(policy),
        mask=mask,
        reference_token_logps=None if reference is None else spread_out(reference),
    )


#: F4: K = 4 answers to each of two prompts.
F4_SUMS = ((-12, -14, -13, -16), (-20, -18, -25, -22))
F4_REFERENCE = ((-13, -13.5, -13, -15), (-19, -19, -23.5, -21.2))
F4_LENGTHS = ((4, 5, 4, 6), (8, 6, 10, 8))
F4_SCORES = ((1, 0.6, 0.3, 0), (0.9, 0.2, 0.7, 0.1))


def f4() -> LossInputs:
    """Lists of answers with their scores."""
    answers = summed(tensor(*F4_SUMS), tensor(*F4_REFERENCE), tensor(*F4_LENGTHS))
    return LossInputs(sides={"answers": answers}, p=tensor(1, 1), values={"scores": tensor(*F4_SCORES)})


#: F3: logits (B, T, V) of the policy and of two other models, and their mask.
F3_POLICY = tensor([[1, 0, -1], [0.5, 0.5, 0]], [[0, 2, 1], [0.2, -0.3, 0.1]])
F3_REFERENCE = tensor([[0.8, 0.2, -1], [0.4, 0.3, 0.3]], [[0.5, 1, 1], [0, 0, 0]])
F3_TEACHER = tensor([[1.5, -0.5, -1], [0, 1, 0]], [[-0.5, 2.5, 1], [1, -1, 0]])
F3_MASK = torch.tensor([[True, True], [True, False]])
