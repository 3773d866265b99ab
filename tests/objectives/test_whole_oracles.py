"""Numbers of the specification that take several rooms together: labels into losses, parts into totals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmalign.objectives import DPO, LossInputs
from mmalign.objectives.distributions import align_distil
from mmalign.objectives.dpo import UPO, Cream
from mmalign.objectives.internal import PreferenceDegree
from mmalign.objectives.labels import bald_gain, kendall_consistency, mcts_confidence, upo_alpha
from mmalign.objectives.lists import TRPA
from mmalign.objectives.shaping import hardness
from mmalign.objectives.tokens import CUT
from tests.objectives.fixtures import (
    F3_POLICY,
    F3_REFERENCE,
    F3_TEACHER,
    close,
    f1,
    given,
    pairs,
    side,
    summed,
    tensor,
)
from tests.objectives.test_token_oracles import f2


def test_confidence_of_a_tree_search_becomes_the_label() -> None:
    p = mcts_confidence(tensor(0.8, 2), tensor(0.2, 1))
    loss = DPO()(f1(p.tolist())).loss
    close(loss, [0.631472, 0.720957])
    assert loss.mean().item() == pytest.approx(0.676215, abs=6e-7)
    worse = mcts_confidence(tensor(0.1), tensor(5.0))
    assert worse.tolist() == [0.5], "a label that is more likely wrong says nothing, it is not turned"


def test_uncertainty_becomes_the_label() -> None:
    passes = tensor([0.9, 0.85, 0.95, 0.9], [0.4, 0.7, 0.55, 0.6])
    output = UPO()(f1((1 - upo_alpha(bald_gain(passes))).tolist()))
    assert output.metrics["preference_loss"].mean().item() == pytest.approx(0.683913, abs=6e-7), "printed: 0.700882"
    assert output.loss.mean().item() == pytest.approx(2.058912, abs=6e-7)


def test_consistency_of_two_rounds_becomes_the_label() -> None:
    first = kendall_consistency(tensor(3, 1, 2, 0.5), tensor(2, 1.5, 2.5, 0.1)).item()
    second = kendall_consistency(tensor(1, 2, 3, 4), tensor(4, 3, 2, 1.5)).item()
    assert Cream()(f1([first, second])).loss.mean().item() == pytest.approx(0.626215, abs=6e-7)
    mean = (first + second) / 2
    assert Cream()(f1([mean, mean])).loss.mean().item() == pytest.approx(0.699131, abs=6e-7)


def test_dpo_on_all_tokens_of_the_fixture_with_spans() -> None:
    loss = DPO()(f2()).loss
    close(loss, [0.688160, 0.644397])
    assert loss.mean().item() == pytest.approx(0.666278, abs=6e-7)


def test_degrees_beside_dpo() -> None:
    logits = tensor([2, 0.5, -1], [0.1, 0.2, 1.5]).unsqueeze(1)
    degraded = replace(summed(tensor([-1], [-1])), score=logits)
    output = PreferenceDegree()(given(f1(), degraded=degraded, degrees=tensor([0], [1])))
    close(output.metrics["degree_loss"], [0.241311, 1.718137])
    assert output.loss.mean().item() == pytest.approx(0.782520, abs=6e-7)


def test_cut_online() -> None:
    judged = side([[-0.4, -1.5, -0.2], [-1, -0.3, -0.8]], None)
    plain = side([[-0.9, -1.4, -0.25], [-0.9, -0.6, -1.2]], None)
    pooled = CUT(threshold=1.2, alpha=0.5)(given(pairs(plain, plain), judged=judged)).pooled
    assert pooled["chosen"].sum().item() / 3 == pytest.approx(0.564674, abs=6e-7)
    assert pooled["judged"].sum().item() / 3 == pytest.approx(0.7, abs=6e-7)


def test_trpa_with_its_trust_region() -> None:
    """Token means of four answers with a mean divergence of 0.013120 from the policy that sampled them."""
    ratio, moved = tensor([0.2, -0.1, 0.05, 0.3]), tensor([0.1, -0.2, 0.1, -0.2])
    answers = summed(ratio, torch.zeros_like(ratio))
    answers = replace(answers, token_values={"old_logps": answers.token_logps - moved.unsqueeze(-1)})
    inputs = LossInputs(sides={"answers": answers}, p=tensor(1), values={"levels": tensor([1, 2, 1, 4])})
    assert TRPA()(inputs).loss.item() == pytest.approx(0.694989, abs=6e-7)


def test_align_distil_on_every_position() -> None:
    logits = {"policy": F3_POLICY, "dpo": F3_TEACHER, "reverse_dpo": F3_REFERENCE}
    found = align_distil(logits, torch.zeros(2, 2, dtype=torch.long), 0.1, 10.0)
    close(found["weight"], [[4.761321, 5.082468], [8.039906, 6.639152]])
    close(found["loss"], [[0.038154, 0.056531], [0.056789, 0.080811]])


def test_hardness_with_the_population_deviation() -> None:
    rewards, gaps, similarity = tensor(1, 0.4, 0, 0.5), tensor(0.2, -0.1, 2.5, 0.1), tensor(0.9, 0.6, 0.4, 0.7)
    standard = (rewards - rewards.mean()) / rewards.std(correction=0)
    close(hardness(similarity, gaps, 1.0) * standard, [1.028485, -0.167555, -1.144436, 0.053590], 1e-6)
