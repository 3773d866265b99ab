"""Token-level objectives against the specification's numbers on its fixtures F2 and F3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.objectives import Completions, LossInputs, LossOutput, TokenTerm
from mmalign.objectives.distill import ADPA, DCKD, AlignDistil, NextQuill
from mmalign.objectives.distributions import agreement, stream, token_kl, token_logps
from mmalign.objectives.rrpo import RRPO
from mmalign.objectives.tokens import CUT, SAIL, WPO
from tests.objectives.fixtures import (
    F3_MASK,
    F3_POLICY,
    F3_REFERENCE,
    F3_TEACHER,
    close,
    given,
    padded,
    pairs,
    side,
    tensor,
)


def f2() -> LossInputs:
    chosen = side(
        [[-0.5, -1, -2, -0.2], [-1.2, -0.4, -0.9]],
        [[-0.7, -1.1, -1.5, -0.4], [-1, -0.8, -1]],
        [[0, 1, 1, 0], [1, 0, 0, 0]],
    )
    rejected = side(
        [[-1.5, -0.6, -0.2], [-0.8, -2.2, -0.5, -1.1]],
        [[-1, -0.9, -0.3], [-0.6, -1.6, -0.7, -1]],
        [[0, 1, 0, 0], [0, 1, 1, 0]],
    )
    return pairs(chosen, rejected)


def terms(term: TokenTerm, mask: Tensor, labels: Tensor, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a term gives of whole logits (B, T, V), streamed one token at a time."""
    rows = {name: values[mask] for name, values in logits.items()}
    return stream(
        term, lambda piece: {name: values[piece] for name, values in rows.items()}, labels[mask], mask, chunk=1
    )


def from_logits(
    policy: Tensor, mask: Tensor, labels: Tensor, term: TokenTerm | None = None, **others: Tensor
) -> Completions:
    found = {} if term is None else terms(term, mask, labels, {"policy": policy, **others})
    return Completions(token_logps=token_logps(policy, labels).masked_fill(~mask, 0.0), mask=mask, terms=found)


def step_loss(output: LossOutput, inputs: LossInputs) -> float:
    """The loss of a step that holds these pairs only."""
    counts = {name: max(1, int(inputs.side(name).mask.sum())) for name in output.pooled}
    return output.loss.mean().item() + sum(output.pooled[name].sum().item() / counts[name] for name in counts)


def test_rrpo_on_whole_distributions() -> None:
    kl = token_kl(F3_REFERENCE, F3_POLICY)
    close(kl, [[0.016068, 0.021564], [0.182282, 0.022215]])
    inputs = f2()
    for sums, beta, expected in (
        ((0.12, 0.30), 0.9, [1.058160, 0.610192]),
        ((0.12, 0.30), 0.1, [0.729960, 0.686197]),
        ((0.037632, 0.182282), 0.9, [1.057337, 0.609015]),
    ):
        divergence = torch.zeros(2, 4, dtype=torch.float64)
        divergence[:, 0] = tensor(*sums)
        chosen = replace(inputs.chosen, token_divergence=divergence)
        close(RRPO(beta=beta, alpha=0.01)(given(inputs, chosen=chosen)).loss, expected)


def test_distributions_far_apart_have_a_finite_divergence() -> None:
    """Released code takes the log of a softmax, which is -inf here."""
    far = tensor([0.0, 200.0]).float()
    assert token_kl(far, -far).item() == pytest.approx(200.0)
    assert token_kl(far, torch.zeros_like(far)).item() == pytest.approx(math.log(2))


def test_sail() -> None:
    inputs = f2()
    sides = {
        "chosen": [[0.4, -0.2, 0.1, 0], [0.3, 0.5, -0.1]],
        "rejected": [[-0.3, 0.2, 0.1], [0.6, -0.4, 0.2, 0.1]],
    }
    rewarded = {
        name: replace(inputs.side(name), token_values={"reward": padded(rows)[0]}) for name, rows in sides.items()
    }
    close(SAIL()(given(inputs, **rewarded)).loss, [0.687588, 0.643732])
    close(SAIL(strength=10.0)(given(inputs, **rewarded)).loss, [0.676783, 0.631194])
    close(SAIL(strength=0.0)(given(inputs, **rewarded)).loss, [0.688160, 0.644397])
    heavy = SAIL(strength=100.0)(given(inputs, **rewarded)).metrics
    assert heavy["rejected_weight"].tolist() == pytest.approx([4 / 3, 5.0 / 4]), "weights below 0 count as 0"


def test_cut() -> None:
    judged = side([[-0.4, -1.5, -0.2], [-1, -0.3, -0.8]], None)
    plain = side([[-0.9, -1.4, -0.25], [-0.9, -0.6, -1.2]], None)
    inputs = given(pairs(plain, plain), judged=judged)
    output = CUT()(inputs)
    close(output.metrics["mistakes"], [1 / 3, 2 / 3])
    assert step_loss(output, inputs) == pytest.approx(0.702174, abs=6e-7)
    assert output.pooled["chosen"].sum().item() / 3 == pytest.approx(0.704348, abs=6e-7)
    assert step_loss(CUT(threshold=1.2, alpha=0.5)(inputs), inputs) == pytest.approx(0.632337, abs=6e-7)
    good = replace(judged, mask=judged.mask & torch.tensor([[True], [False]]))
    output = CUT()(given(inputs, judged=good))
    assert output.pooled["chosen"][1].item() == pytest.approx(2.7), "a good answer is learnt as it is"
    assert output.pooled["judged"][1].item() == 0


def test_align_distil() -> None:
    objective = AlignDistil()
    labels = torch.zeros(2, 2, dtype=torch.long)
    term = objective.token_terms["chosen"]
    chosen = from_logits(F3_POLICY, F3_MASK, labels, term, dpo=F3_TEACHER, reverse_dpo=F3_REFERENCE)
    close(chosen.terms["weight"], [[4.761321, 5.082468], [8.039906, 0.0]])
    close(chosen.terms["loss"], [[0.038154, 0.056531], [0.056789, 0.0]])
    close(objective(pairs(chosen, chosen)).loss, [0.047343, 0.056789])


def test_dckd() -> None:
    objective = DCKD()
    first, second = torch.tensor([[True, True], [False, False]]), torch.tensor([[False, False], [True, False]])
    labels = torch.tensor([[0, 1], [0, 0]])
    term = objective.token_terms["chosen"]
    chosen = from_logits(F3_POLICY, first, labels, term, teacher=F3_TEACHER)
    rejected = from_logits(F3_POLICY, second, labels, term, teacher=F3_TEACHER)
    inputs = pairs(chosen, rejected)
    output = objective(inputs)
    assert output.metrics["nll"][0].item() == pytest.approx(0.682813, abs=6e-7)
    assert output.metrics["chosen_kl"][0].item() == pytest.approx(0.077328, abs=6e-7)
    assert output.metrics["rejected_kl"][1].item() == pytest.approx(0.039537, abs=6e-7)
    assert step_loss(output, inputs) == pytest.approx(0.799678, abs=1e-6)


def test_adpa() -> None:
    objective = ADPA()
    first, second = torch.tensor([[True, True], [False, False]]), torch.tensor([[False, False], [True, False]])
    labels = torch.tensor([[0, 1], [0, 0]])
    term = objective.token_terms["sample"]
    teachers = {"teacher": F3_TEACHER, "teacher_reference": F3_REFERENCE}
    chosen = from_logits(F3_POLICY, first, labels)
    sample = from_logits(F3_POLICY, second, labels, term, **teachers)
    inputs = given(pairs(chosen, chosen), sample=sample)
    assert objective(inputs).metrics["advantage"][1].item() == pytest.approx(0.124540, abs=6e-7)
    assert step_loss(objective(inputs), inputs) == pytest.approx(0.558273, abs=6e-7)
    both = from_logits(F3_POLICY, torch.tensor([[False, False], [True, True]]), labels, term, **teachers)
    assert objective(given(inputs, sample=both)).metrics["advantage"][1].item() == pytest.approx(-0.013889, abs=6e-7)


def test_next_quill() -> None:
    labels = torch.tensor([[0, 2], [1, 0]])
    objective = NextQuill()
    chosen = from_logits(F3_POLICY, F3_MASK, labels, objective.token_terms["chosen"], no_history=F3_REFERENCE)
    close(chosen.terms["gain"], [[0.081848, -0.089347], [0.281589, 0.0]])
    inputs = pairs(chosen, chosen)
    assert NextQuill(alpha=0.0)(inputs).loss.mean().item() == pytest.approx(0.462891, abs=6e-7)
    assert objective(inputs).loss.mean().item() == pytest.approx(0.556128, abs=6e-7)
    same = from_logits(F3_POLICY, F3_MASK, labels, objective.token_terms["chosen"], no_history=F3_POLICY)
    without = objective(pairs(same, same)).loss.mean().item()
    plain = NextQuill(alpha=0.0)(pairs(same, same)).loss.mean().item()
    assert without == pytest.approx(plain), "a pair without a history has no effect of one to learn"


def test_the_branch_without_history_learns_only_when_told_to() -> None:
    labels = torch.tensor([[0, 2], [1, 0]])
    for detach in (False, True):
        objective = NextQuill(detach_no_history=detach)
        without = F3_REFERENCE.clone().requires_grad_()
        policy = F3_POLICY.clone().requires_grad_()
        chosen = from_logits(policy, F3_MASK, labels, objective.token_terms["chosen"], no_history=without)
        objective(pairs(chosen, chosen)).loss.sum().backward()
        assert (without.grad is not None and bool(without.grad.abs().sum() > 0)) is not detach


@pytest.mark.parametrize(
    ("term", "others"),
    [
        (AlignDistil().token_terms["chosen"], ("dpo", "reverse_dpo")),
        (DCKD().token_terms["rejected"], ("teacher",)),
        (ADPA().token_terms["sample"], ("teacher", "teacher_reference")),
        (NextQuill(detach_no_history=True).token_terms["chosen"], ("no_history",)),
    ],
)
def test_only_the_policy_learns_from_distributions(term: TokenTerm, others: tuple[str, ...]) -> None:
    assert term.sources == others
    labels = torch.tensor([[0, 2], [1, 0]])
    values = dict(zip(others, (F3_TEACHER, F3_REFERENCE), strict=False))
    policy = F3_POLICY.clone().requires_grad_()
    fixed = {name: value.clone().requires_grad_() for name, value in values.items()}
    found = terms(term, F3_MASK, labels, {"policy": policy, **fixed})
    sum(value.sum() for value in found.values() if value.requires_grad).backward()  # type: ignore[union-attr]
    assert policy.grad is not None
    assert policy.grad[F3_MASK].abs().sum() > 0
    assert policy.grad[~F3_MASK].abs().sum() == 0
    assert all(value.grad is None or not value.grad.any() for value in fixed.values())

    def whole(logits: Tensor) -> tuple[Tensor, ...]:
        found = term.function({"policy": logits, **values}, labels)
        return tuple(value for value in found.values() if value.requires_grad)

    assert torch.autograd.gradcheck(whole, (F3_POLICY.clone().requires_grad_(),))


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_streamed_terms_are_those_of_whole_distributions(chunk: int) -> None:
    labels = torch.tensor([[0, 2], [1, 0]])
    term = AlignDistil().token_terms["chosen"]
    states = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    calls = []

    def logits(piece: slice) -> dict[str, Tensor]:
        calls.append(piece)
        policy = states[piece] @ head.T
        return {"policy": policy, "dpo": F3_TEACHER[F3_MASK][piece], "reverse_dpo": F3_REFERENCE[F3_MASK][piece]}

    streamed = stream(term, logits, labels[F3_MASK], F3_MASK, chunk)["loss"]
    whole = term.function(logits(slice(0, 3)), labels[F3_MASK])["loss"]
    torch.testing.assert_close(streamed[F3_MASK], whole)
    assert streamed[~F3_MASK].tolist() == [0.0]
    expected = torch.autograd.grad(whole.sum(), head)[0]
    before = len(calls)
    torch.testing.assert_close(torch.autograd.grad(streamed.sum(), head)[0], expected)
    assert len(calls) - before == -(-3 // chunk), "the distributions are made again for the backward pass"


def test_wpo_weighs_by_how_likely_the_policy_says_it() -> None:
    labels = torch.tensor([[0, 2], [1, 0]])
    one = from_logits(F3_POLICY, F3_MASK, labels, TokenTerm(agreement))
    one = replace(one, reference_token_logps=token_logps(F3_REFERENCE, labels))
    p = F3_POLICY.softmax(-1)
    aligned = (token_logps(F3_POLICY, labels) - (p**2).sum(-1).log()).masked_fill(~F3_MASK, 0).sum(-1) / F3_MASK.sum(-1)
    output = WPO()(pairs(one, one))
    close(output.metrics["on_policy_weight"], (2 * aligned).exp().tolist())
    close(output.loss, ((2 * aligned).exp() * math.log(2)).tolist())
