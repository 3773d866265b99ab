"""Policy gradients, rewards and advantages against the specification's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.objectives import Completions, LossInputs
from mmalign.objectives.policy import GRPO, P3O, SAR, HardnessGRPO, SCoRe, SelfPlay
from mmalign.objectives.shaping import hardness, left_out_advantage, sar_reward, score_rewards, win_rates
from mmalign.objectives.terms import clipped_pg
from tests.objectives.fixtures import close, given, pairs, summed, tensor


def moved(log_ratio: Tensor, reference: Tensor | None = None) -> Completions:
    """A side whose policy has moved by this from the one that sampled it."""
    old = torch.full_like(log_ratio, -3)
    side = summed(old + log_ratio, reference)
    return replace(side, token_values={"old_logps": old.unsqueeze(-1)})


def p3o_inputs() -> LossInputs:
    sides = pairs(moved(tensor(0.1, -0.3)), moved(tensor(-0.2, 0.25)))
    return given(sides, chosen_reward=tensor(1, 0.2), rejected_reward=tensor(0.4, 0.5))


def test_p3o() -> None:
    close(P3O(beta=0.0, form="separate")(p3o_inputs()).loss, [-0.085932, -0.060000])
    output = P3O(beta=0.0)(p3o_inputs())
    close(output.loss, [-0.360000, 0.120000])
    assert output.metrics["clip_share"].tolist() == [1.0, 1.0]


def test_forms_of_p3o_agree_in_gradient_where_nothing_has_moved() -> None:
    gradients = []
    for form, values in (("separate", [0.0, 0.0]), ("joint", [-0.3, 0.15])):
        zero = torch.zeros(2, dtype=torch.float64)
        inputs = given(pairs(moved(zero), moved(zero)), chosen_reward=tensor(1, 0.2), rejected_reward=tensor(0.4, 0.5))
        inputs.chosen.token_logps.requires_grad_()
        output = P3O(beta=0.0, form=form)(inputs)  # type: ignore[arg-type]
        close(output.loss, values)
        output.loss.sum().backward()
        gradients.append(inputs.chosen.token_logps.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_p3o_takes_the_divergence_from_the_rewards() -> None:
    inputs = p3o_inputs()
    sides = {name: replace(one, reference_token_logps=one.token_logps - 1) for name, one in inputs.sides.items()}
    sides["rejected"] = inputs.rejected.__class__(
        token_logps=inputs.rejected.token_logps,
        mask=inputs.rejected.mask,
        reference_token_logps=inputs.rejected.token_logps,
        token_values=inputs.rejected.token_values,
    )
    advantage = P3O(beta=0.1)(given(inputs, **sides)).metrics["advantage"]
    close(advantage, [0.5, 0.4])


def test_hardness() -> None:
    rewards, gaps = tensor([1, 0.4, 0, 0.5]), tensor([0.2, -0.1, 2.5, 0.1])
    similarity = tensor([0.9, 0.6, 0.4, 0.7])
    data = tensor([0.894926, 1.020576, 1.100643, 0.979245])
    close(hardness(similarity, gaps, 1.0), (data * 0.779722).tolist(), 1e-6)
    close(hardness(similarity, gaps, 0.0), data.tolist(), 1e-6)
    close(hardness(torch.full_like(similarity, torch.nan), gaps, 1.0), [[0.779722] * 4])
    values = {"rewards": rewards, "similarity": similarity, "gaps": gaps}
    inputs = LossInputs(sides={"answers": moved(torch.zeros(1, 4, dtype=torch.float64))}, p=tensor(1), values=values)
    advantage = HardnessGRPO().advantages(inputs)
    close(advantage, [[0.890694, -0.145107, -0.991110, 0.046410]], 1e-6)
    same = given(inputs, rewards=torch.ones(1, 4, dtype=torch.float64))
    assert HardnessGRPO().advantages(same).tolist() == [[0.0] * 4]


def test_self_aligned_reward() -> None:
    alone, answered = tensor(-1.2, -0.8), tensor(-0.5, -0.9)
    close(sar_reward(alone, answered), [0.503415, -0.105171])
    sides = {"answers": moved(tensor([2.5, 2.1])), "answers_alone": summed(tensor([-1.2, -0.8]))}
    inputs = LossInputs(sides=sides, p=tensor(1), values={"rewards": tensor([1, 0])})
    close(SAR().rewards(inputs), [[1.100683, -0.021034]])
    assert sar_reward(tensor(1e4), tensor(-1e4)).tolist() == [-1.0]


def test_self_play() -> None:
    preferences = tensor([0.5, 0.8, 0.3], [0.2, 0.5, 0.9], [0.7, 0.1, 0.5])
    close(win_rates(preferences, include_self=False), [0.55, 0.55, 0.40])
    with pytest.raises(ValueError, match="2 or more"):
        win_rates(tensor([0.5]), include_self=False)
    answers = moved(torch.zeros(1, 3, dtype=torch.float64))
    inputs = LossInputs(sides={"answers": answers}, p=tensor(1), values={"preferences": preferences.unsqueeze(0)})
    close(SelfPlay(normalise=False).advantages(inputs), [[0.05, 0.05, -0.1]])


def test_score() -> None:
    r1, r2 = tensor(0, 1, 1, 0), tensor(1, 1, 0, 0)
    close(score_rewards(r1, r2, 10.0), [11, 1, -10, 0])
    close(r1 + score_rewards(r1, r2, 10.0), [11, 2, -9, 0])
    kl = tensor([0.5, 0.2, 0.1, 0])
    sides = {
        "first_turn": moved(torch.zeros_like(kl), -3 - kl),
        "second_turn": moved(torch.zeros_like(kl), -3 + torch.zeros_like(kl)),
    }
    values = {"first_rewards": r1.unsqueeze(0), "second_rewards": r2.unsqueeze(0)}
    inputs = LossInputs(sides=sides, p=tensor(1), values=values)
    for turn in sides.values():
        turn.token_logps.requires_grad_()
    SCoRe(stage=1, kl=0.0)(inputs).loss.sum().backward()
    # Stage I: turn 1 is only held in place, turn 2 is paid; -dL/dlogp is the advantage by K.
    found = [-turn.token_logps.grad.squeeze(-1) * 4 for turn in sides.values()]  # type: ignore[union-attr]
    close(found[0], left_out_advantage(-0.1 * kl).tolist())
    close(found[1], left_out_advantage(r2.unsqueeze(0)).tolist())
    total = -0.1 * kl + r2
    close(total, [[0.95, 0.98, -0.01, 0.0]])
    for turn in sides.values():
        turn.token_logps.grad = None
    SCoRe(kl=0.0)(inputs).loss.sum().backward()
    found = [-turn.token_logps.grad.squeeze(-1) * 4 for turn in sides.values()]  # type: ignore[union-attr]
    close(found[1], left_out_advantage(tensor([11, 1, -10, 0])).tolist())


def test_grpo_reports_what_was_clipped() -> None:
    answers = moved(tensor([0.5, 0.0, 0.1, -0.5]))
    inputs = LossInputs(sides={"answers": answers}, p=tensor(1), values={"rewards": tensor([1, 0.4, 0.5, 0])})
    output = GRPO()(inputs)
    close(output.metrics["clip_share"], [0.5])
    advantage = GRPO().advantages(inputs)[0].tolist()
    ratios = [1.2, 1.0, torch.tensor(0.1, dtype=torch.float64).exp().item(), 0.8]
    expected = -sum(a * r for a, r in zip(advantage, ratios, strict=True)) / 4
    close(output.loss, [expected])
    half = replace(answers, mask=answers.mask & torch.tensor([True, True, True, False]).view(1, 4, 1))
    shorter = GRPO()(given(inputs, answers=half)).loss.item()
    assert shorter == pytest.approx(-sum(a * r for a, r in zip(advantage[:3], ratios[:3], strict=True)) / 3)


def test_every_turn_pays_for_its_own_divergence() -> None:
    kls = tensor([0.5, 0.2, 0.1, 0]), tensor([0, 1, 0, 2])
    sides = {
        name: moved(torch.zeros_like(kl), -3 - kl) for name, kl in zip(("first_turn", "second_turn"), kls, strict=True)
    }
    zero = torch.zeros(1, 4, dtype=torch.float64)
    inputs = LossInputs(sides=sides, p=tensor(1), values={"first_rewards": zero, "second_rewards": zero})
    for turn in sides.values():
        turn.token_logps.requires_grad_()
    SCoRe(kl=0.3)(inputs).loss.sum().backward()
    for turn, kl in zip(sides.values(), kls, strict=True):
        assert turn.token_logps.grad is not None
        close(-turn.token_logps.grad.squeeze(-1) * 4, left_out_advantage(-0.3 * kl).tolist())


def test_an_advantage_is_a_number() -> None:
    advantage = tensor(1.0, -1.0).requires_grad_()
    ratio = tensor(0.1, 0.1).requires_grad_()
    clipped_pg(ratio, advantage).sum().backward()
    assert advantage.grad is None
    assert ratio.grad is not None
