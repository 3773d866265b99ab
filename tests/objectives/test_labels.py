"""Soft labels, weights and choices, which carry no gradient, against the specification's numbers."""

from __future__ import annotations

import pytest
import torch

from mmalign.objectives.labels import (
    agreement_mask,
    bald_gain,
    goal_label,
    kendall_consistency,
    lcpo_posterior,
    lcpo_update,
    mcts_confidence,
    preference_strength,
    selfie_labels,
    upo_alpha,
    window_quantile,
)
from mmalign.objectives.shaping import (
    ches_similarity,
    curation_weights,
    directed_reward,
    group_advantage,
    infifpo_source,
    left_out_advantage,
    preferences_of,
    win_rates,
)
from tests.objectives.fixtures import close, tensor


def test_posteriors() -> None:
    """IPO variant of LCPO: the logit is 2 d / tau."""
    difference = tensor(-12 / 4 + 13 / 4 + 15 / 5 - 14 / 5, -20 / 8 + 19.5 / 8 + 18 / 6 - 19 / 6)
    logit = 2 * difference / 0.1
    close(logit.sigmoid(), [0.999877, 0.010117])
    close(lcpo_posterior(logit, 0.9), [0.999986, 0.084238])
    half = lcpo_posterior(logit, 0.5)
    torch.testing.assert_close(half, logit.sigmoid())
    kept = lcpo_update(tensor(0.9, 0.7), tensor(1, 1), torch.tensor([0, 0]))
    close(kept, [0.91, 0.7])
    sure = lcpo_posterior(tensor(0.0), 1.0)
    assert sure.item() == pytest.approx(0.999), "reliabilities stay within 1e-3 of 0 and 1"


def test_kendall() -> None:
    close(kendall_consistency(tensor(3, 1, 2, 0.5), tensor(2, 1.5, 2.5, 0.1)), 0.833333)
    close(kendall_consistency(tensor(1, 2, 3, 4), tensor(4, 3, 2, 1.5)), 0.0)
    both = kendall_consistency(tensor([3, 1], [1, 2]), tensor([2, 1], [2, 1]))
    assert both.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="2 or more"):
        kendall_consistency(tensor(1), tensor(1))


def test_selfie_threshold() -> None:
    close(selfie_labels(tensor(0.25, -0.3), -0.2, 0.1), [1.0, 0.9])
    window = torch.arange(50.0)
    assert window_quantile(window.flip(0), 0.1, 50).item() == 4.5
    assert window_quantile(window[:49], 0.1, 50).item() == 0.0


def test_uncertainty() -> None:
    passes = tensor([0.9, 0.85, 0.95, 0.9], [0.4, 0.7, 0.55, 0.6])
    gain = bald_gain(passes)
    close(gain, [0.007235, 0.024058])
    alpha = upo_alpha(gain)
    close(alpha, [0.0, 0.008472])
    assert bool((alpha < 0.5).all()), "as printed, the rule takes every label to be wrong"
    close(bald_gain(tensor([0.3])), [0.0])
    assert bald_gain(tensor([0.0, 1.0])).item() == pytest.approx(0.693147, abs=1e-6)


def test_other_labels() -> None:
    close(mcts_confidence(tensor(0.8, 2), tensor(0.2, 1)), [0.833333, 0.666667])
    close(goal_label(tensor(0.75, 0.5), tensor(0.25, 0.6)), [0.622459, 0.475021])
    assert agreement_mask(tensor(0.7, 0.3, 0.7), tensor(0.6, 0.4, 0.4)).tolist() == [True, True, False]
    mean, deviation = preference_strength(tensor([0.9, 0.2, 1.1], [-0.4, 0.1, -0.6]))
    close(mean, [0.733333, -0.3])
    close(deviation, [0.385861, 0.294392])
    with pytest.raises(ValueError, match="2 reward models"):
        preference_strength(tensor([1, 2]))


def test_win_rates_of_scores() -> None:
    close(win_rates(preferences_of(tensor(2, 1, -1)), include_self=True), [0.727878, 0.549913, 0.222210])


def test_sources() -> None:
    now, initial, sources = tensor(-3, -2.5), tensor(-3.25, -2.4375), tensor([-3, -3.5], [-2, -2.6])
    close(infifpo_source(now, initial, sources, chosen=True), [-3.25, -2.0])
    rejected = tensor([-3.2, -2.5], [-3.3, -2.9])
    close(infifpo_source(tensor(-3, -3), tensor(-2.8, -19 / 6), rejected, chosen=False), [-2.8, -3.3])


def test_small_extras() -> None:
    close(ches_similarity(tensor([1, 2]), tensor([2, 1])), [-1.0])
    angle = torch.tensor(torch.pi / 6, dtype=torch.float64)
    assert directed_reward(tensor(0.8, -0.4), torch.stack((angle.cos(), angle.sin()))).item() == pytest.approx(
        0.492820, abs=6e-7
    )
    close(curation_weights(tensor(1, 0, 2)), [0.244728, 0.090031, 0.665241])
    close(left_out_advantage(tensor([1, 0.2])), [[0.8, -0.8]])
    close(group_advantage(tensor([1, 1, 1])), [[0.0, 0.0, 0.0]])
    close(group_advantage(tensor([3.0])), [[0.0]])


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 0.9, -0.37])
def test_equal_rewards_have_no_advantage_whatever_float32_makes_of_their_mean(reward: float) -> None:
    for count in range(2, 17):
        rewards = torch.full((1, count), reward)
        assert group_advantage(rewards).abs().max() == 0, count
        assert left_out_advantage(rewards).abs().max() == 0, count
    nearly = torch.tensor([[0.3, 0.3 + 3e-8, 0.3]])
    assert group_advantage(nearly).abs().max() < 1e-3, "rounding is not blown up"


def test_nothing_here_carries_gradient() -> None:
    x = tensor(0.2, 0.4, 0.9).requires_grad_()
    found = [
        lcpo_posterior(x, x),
        goal_label(x, x * 2),
        bald_gain(x.unsqueeze(0)),
        upo_alpha(x),
        mcts_confidence(x, x),
        group_advantage(x),
        win_rates(preferences_of(x), include_self=True),
    ]
    assert not any(value.requires_grad for value in found)
