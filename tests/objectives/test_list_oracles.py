"""List-wise objectives against the specification's numbers on its fixture F4."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import DPO, Completions, LossInputs
from mmalign.objectives.lists import PRO, RRHF, SAMI, TRPA, KnowPAT, LiPO, SteerLM
from mmalign.objectives.ratios import log_ratio
from mmalign.objectives.shaping import lambda_weights
from tests.objectives.fixtures import F4_LENGTHS, F4_SUMS, close, f4, given, pairs, summed, tensor


def lists(answers: Completions, **values: torch.Tensor) -> LossInputs:
    size = answers.mask.shape[0]
    return LossInputs(sides={"answers": answers}, p=torch.ones(size, dtype=torch.float64), values=values)


def test_lipo() -> None:
    inputs = f4()
    answers = inputs.side("answers")
    ratio = log_ratio(answers)
    close(ratio, [[1, -0.5, 0, -1], [-1, 1, -1.5, -0.8]])
    weight = lambda_weights(ratio, inputs.value("scores"), answers.present)
    pairs_0, pairs_1 = weight[0][weight[0] > 0], weight[1][weight[1] > 0]
    close(pairs_0, [0.349337, 0.409382, 0.821360, 0.053753, 0.051578, 0.066779])
    close(pairs_1, [0.517471, 0.024159, 0.150035, 0.040959, 0.390808, 0.159686])
    close(LiPO(beta=0.1)(inputs).loss, [1.088144, 0.998695])
    close(LiPO(beta=0.1, mean_over_pairs=True)(inputs).loss, [0.181357, 0.166449])
    equal = given(inputs, scores=torch.ones(2, 4, dtype=torch.float64))
    assert LiPO()(equal).loss.tolist() == [0.0, 0.0]


def test_lipo_of_two_is_weighted_dpo() -> None:
    answers = summed(tensor([-12, -15], [-20, -18]), tensor([-13, -14], [-19.5, -19]))
    output = LiPO(beta=0.1)(lists(answers, scores=tensor([1, 0], [1, 0])))
    pair = pairs(summed(tensor(-12, -20), tensor(-13, -19.5)), summed(tensor(-15, -18), tensor(-14, -19)))
    weight = 1 / math.log(2) - 1 / math.log(3)
    torch.testing.assert_close(output.loss, weight * DPO()(pair).loss)


def test_pro() -> None:
    output = PRO()(f4())
    close(output.metrics["rank_loss"], [4.596349, 3.731605])
    close(output.loss - output.metrics["rank_loss"], [5.4, 9.0])
    assert output.loss.mean().item() == pytest.approx(11.363977, abs=1e-6)


def test_pro_leaves_out_steps_without_a_worse_answer() -> None:
    inputs = f4()
    tied = PRO(sft_weight=0.0)(given(inputs, scores=tensor([1, 0.5, 0.5, 0.5], [1, 1, 1, 1])))
    best = -12 / 4
    others = [-14 / 5, -13 / 4, -16 / 6]
    expected = math.log(math.exp(0.5 * best) + sum(math.exp(0.5 * other) for other in others)) - 0.5 * best
    close(tied.loss, [expected, 0.0])


def test_knowpat() -> None:
    inputs = f4()
    inputs.side("answers").token_logps.requires_grad_()
    output = KnowPAT()(inputs)
    close(output.metrics["align_loss"], [1.192042, 1.758735])
    close(output.loss, [3.119204, 2.675874])
    pulled = KnowPAT(align_weight=1.0)(inputs).loss - KnowPAT(align_weight=0.0)(inputs).loss
    pulled[0].backward()
    gradient = inputs.side("answers").token_logps.grad
    assert gradient is not None
    # A token's gradient is that of the mean, by the number of tokens.
    close(gradient[0, :, 0] * tensor(*F4_LENGTHS)[0], [-0.136082, -0.239673, 0.006577, 0.011447])


def test_knowpat_traps() -> None:
    """Released code divides by 3 whatever K is, and by 0 where all scores are equal."""
    two = summed(tensor([-1.0, -2.0]))
    output = KnowPAT()(lists(two, scores=tensor([1, 0])))
    close(output.metrics["align_loss"], [math.log1p(math.e) + math.log1p(math.exp(-2))])
    equal = summed(tensor([-1.0, -1.0, -1.0]))
    close(KnowPAT()(lists(equal, scores=tensor([2, 1, 0]))).loss, [1.0])


def test_rrhf() -> None:
    answers = summed(tensor([-5.0, -7.0, -4.5]), lengths=tensor([5, 5, 5]))
    output = RRHF()(lists(answers, scores=tensor([3, 2, 1])))
    close(output.metrics["rank_loss"], [0.6])
    close(output.loss, [5.6])


def test_trpa() -> None:
    ratio = tensor([0.2, -0.1, 0.05, 0.3])
    answers = summed(ratio, torch.zeros_like(ratio))
    objective = TRPA(kl_weight=0.0)
    output = objective(lists(answers, levels=tensor([1, 2, 1, 4])))
    close(output.loss, [0.694976])
    h = [0.075, -0.025, -0.04, 0.0375, -0.0625]
    assert output.loss.item() == pytest.approx(sum(math.log1p(math.exp(-value)) for value in h) / 5, abs=1e-9)
    close(objective(lists(answers, levels=tensor([2, 2, 2, 2]))).loss, [0.753838])
    assert TRPA(kl_weight=0.0, alone=False)(lists(answers, levels=tensor([2, 2, 2, 2]))).loss.tolist() == [0.0]
    moved = tensor([0.1, -0.2])
    two = replace(summed(moved, moved), token_values={"old_logps": tensor([[0.0], [0.0]])})
    output = TRPA(alone=False)(lists(two, levels=tensor([1, 1])))
    close(output.metrics["kl"], [0.013120])
    close(output.loss, [1e-3 * 0.0131201])


def test_sami() -> None:
    def matrix(rows: torch.Tensor) -> LossInputs:
        return lists(summed(rows.unsqueeze(0)))

    output = SAMI()(matrix(tensor([-1, -1.6], [-1.4, -1.1])))
    close(output.metrics["rows"], [0.495922])
    close(output.metrics["columns"], [0.493546])
    close(output.loss, [0.494734])
    close(SAMI()(matrix(tensor([-1.0]))).loss, [0.0])


def test_steerlm() -> None:
    answers = summed(tensor([-9, -9.8, -11.2]))
    answers.token_logps.requires_grad_()
    values = {
        "log_attributes": tensor([-1, -2.5, -0.5]),
        "log_prior": tensor([-10, -9, -12]),
        "log_proposal": tensor([-9.5, -9.5, -11]),
    }
    output = SteerLM()(lists(answers, **values))
    close(output.loss, [0.046077])
    close(output.metrics["largest_weight"], [0.383652])
    output.loss.sum().backward()
    assert answers.token_logps.grad is not None
    close(-answers.token_logps.grad[0, :, 0], [-0.130246, 0.001788, 0.128458])
    one = lists(summed(tensor([-9.0])), **{name: value[:, :1] for name, value in values.items()})
    close(SteerLM()(one).loss, [0.0])


def test_absent_answers_change_nothing() -> None:
    """A list of three in a batch of lists of four is the list of three."""
    inputs = f4()
    answers = inputs.side("answers")
    marked = answers.mask.clone()
    marked[:, 2] = False
    short = [0, 1, 3]

    def without(values: torch.Tensor) -> torch.Tensor:
        return values[:, short]

    less = Completions(
        token_logps=without(answers.token_logps),
        mask=without(answers.mask),
        reference_token_logps=without(answers.reference),
        token_values={"old_logps": without(answers.reference)},
    )
    padded = replace(answers, mask=marked, token_values={"old_logps": answers.reference})
    values = {
        "scores": inputs.value("scores"),
        "levels": tensor([1, 2, 1, 3], [2, 1, 1, 4]),
        "log_attributes": tensor(*F4_SUMS) / 7,
        "log_prior": tensor(*F4_SUMS) / 3,
        "log_proposal": tensor(*F4_SUMS) / 2,
    }
    for objective in (LiPO(), PRO(), KnowPAT(), RRHF(), TRPA(), SteerLM()):
        found = objective(lists(padded, **values)).loss
        expected = objective(lists(less, **{name: without(value) for name, value in values.items()})).loss
        torch.testing.assert_close(found, expected, msg=objective.name)
