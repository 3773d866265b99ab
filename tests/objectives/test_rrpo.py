"""RRPO against the worked examples of its specification, an independent version in NumPy, and what must always hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmalign.objectives import DPO, RRPO, Completions, LossInputs
from tests.objectives.fixtures import pairs, random_pairs, side

Logits = Sequence[Sequence[float]]

REFERENCE: Logits = [[2, 0, 0], [0, 0, 0], [0, 0, 1]]
CHOSEN: Logits = [[2, 0, 0], [0, 1, 0], [0, 0, 2]]
REJECTED: Logits = [[2, 0, 0], [0, 1, 0], [0, 0, 0]]


def from_logits(policy: Tensor, reference: Tensor, labels: Sequence[int], signs: Sequence[int]) -> Completions:
    """One completion, its log-probs and divergence taken from whole distributions (T, V)."""
    ours, theirs = policy.log_softmax(-1), reference.log_softmax(-1)
    index = torch.tensor(labels)[:, None]
    return Completions(
        token_logps=ours.gather(-1, index).T,
        mask=torch.ones(1, len(labels), dtype=torch.bool),
        reference_token_logps=theirs.gather(-1, index).T,
        changed=torch.tensor([signs]) > 0,
        token_divergence=(theirs.exp() * (theirs - ours)).sum(-1)[None],
    )


def worked(
    chosen_signs: Sequence[int] = (0, 1, 0), rejected_signs: Sequence[int] = (0, 1, 0)
) -> tuple[LossInputs, Tensor]:
    """Worked example A, and its policy logits (2, T, V) that require gradients."""
    policy = torch.tensor([CHOSEN, REJECTED], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    chosen = from_logits(policy[0], reference, (0, 1, 2), chosen_signs)
    return pairs(chosen, from_logits(policy[1], reference, (0, 0, 2), rejected_signs)), policy


def test_example_a() -> None:
    inputs, policy = worked()
    output = RRPO()(inputs)
    assert output.loss.item() == pytest.approx(0.485651, abs=6e-7), "0.462503 has the page's sign before the KL"
    assert output.metrics["preference_loss"].item() == pytest.approx(0.474077, abs=6e-7)
    assert output.metrics["margin"].item() == pytest.approx(0.5, abs=1e-9)
    assert output.metrics["kl"].item() == pytest.approx(0.231482, abs=6e-7)
    assert output.metrics["kl_per_token"].item() == pytest.approx(0.231482 / 3, abs=6e-7)
    assert output.metrics["accuracy"].item() == 1.0
    assert output.metrics["chosen_phrase_tokens"].item() == output.metrics["rejected_phrase_tokens"].item() == 1.0
    assert output.metrics["chosen_logps_change"].item() == pytest.approx(0.547168 + 0.311900, abs=1e-6)
    assert output.metrics["rejected_logps_change"].item() == pytest.approx(-0.452832 - 0.547168, abs=1e-6)
    assert DPO(beta=0.5)(inputs).loss.item() == pytest.approx(0.332706, abs=6e-7)
    output.loss.sum().backward()
    assert policy.grad is not None
    expected = [
        [[0, 0, 0], [0.033939, -0.067877, 0.033939], [-0.005272, -0.005272, 0.010543]],
        [[0, 0, 0], [0.148762, -0.108754, -0.040008], [0, 0, 0]],
    ]
    torch.testing.assert_close(policy.grad, torch.tensor(expected, dtype=torch.float64), atol=6e-7, rtol=0)


def test_example_b() -> None:
    nothing, _ = worked((0, 0, 0), (0, 0, 0))
    assert RRPO()(nothing).loss.item() == pytest.approx(0.704721, abs=6e-7)
    one_side, _ = worked((0, 1, 0), (0, 0, 0))
    output = RRPO()(one_side)
    assert output.metrics["margin"].item() == pytest.approx(0.273584, abs=6e-7)
    assert output.loss.item() == pytest.approx(0.577256, abs=6e-7)


def test_example_c() -> None:
    """Two phrases of unequal length: only the two totals matter, and phrases need no partner."""
    chosen = side([[0.3, -0.1, 0.2, 0.4]], [[0, 0, 0, 0]], [[1, 1, 0, 1]])
    rejected = side([[-0.2, -0.3, -0.1, 0.1, -0.5]], [[0] * 5], [[1, 1, 1, 0, 1]])
    output = RRPO(alpha=0.0)(pairs(chosen, rejected))
    assert output.metrics["margin"].item() == pytest.approx(0.85, abs=1e-9)
    assert output.loss.item() == pytest.approx(0.355865, abs=6e-7)


def test_f2_and_f3_oracles_of_the_objectives_page() -> None:
    def inputs(kl: Sequence[Sequence[float]]) -> LossInputs:
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
        divergence = torch.zeros(2, 4, dtype=torch.float64)
        for row, values in enumerate(kl):
            divergence[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        return pairs(replace(chosen, token_divergence=divergence), rejected)

    given = inputs([[0.12], [0.30]])
    for beta, expected in ((0.9, [1.058160, 0.610192]), (0.1, [0.729960, 0.686197])):
        assert RRPO(beta=beta, alpha=0.01)(given).loss.tolist() == pytest.approx(expected, abs=6e-7)
    computed = inputs([[0.016068, 0.021564], [0.182282]])
    assert RRPO(beta=0.9, alpha=0.01)(computed).loss.tolist() == pytest.approx([1.057337, 0.609015], abs=1.1e-6)


def test_policy_is_reference() -> None:
    logits = torch.tensor(REFERENCE, dtype=torch.float64)
    one = from_logits(logits, logits, (0, 1, 2), (0, 1, 0))
    output = RRPO()(pairs(one, from_logits(logits, logits, (0, 0, 2), (0, 1, 0))))
    assert output.loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert output.metrics["kl"].item() == 0.0


def in_numpy(beta: float, alpha: float, pair: dict[str, np.ndarray]) -> float:
    """One pair's loss as the specification writes it: phrase by phrase, from shifted logits, labels and signs."""

    def log_softmax(values: np.ndarray) -> np.ndarray:
        top = values.max(-1, keepdims=True)
        return values - top - np.log(np.exp(values - top).sum(-1, keepdims=True))

    rewards = []
    kl = 0.0
    for number, name in enumerate(("chosen", "rejected")):
        ours, theirs = log_softmax(pair[f"{name}_policy"]), log_softmax(pair[f"{name}_reference"])
        labels, signs = pair[f"{name}_labels"], pair[f"{name}_signs"]
        total = 0.0
        for phrase in sorted({sign for sign in signs.tolist() if sign > 0}):
            for t in range(len(labels)):
                if signs[t] == phrase and labels[t] != -100:
                    total += ours[t, labels[t]] - theirs[t, labels[t]]
        rewards.append(beta * total)
        if number == 0:
            for t in range(len(labels)):
                if labels[t] != -100:
                    kl += float((np.exp(theirs[t]) * (theirs[t] - ours[t])).sum())
    return float(np.log1p(np.exp(-(rewards[0] - rewards[1])))) + alpha * kl


@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 1.0), alpha=st.floats(0.0, 0.2))
def test_agrees_with_an_independent_version(seed: int, beta: float, alpha: float) -> None:
    draw = np.random.default_rng(seed)
    size, vocabulary = 3, 6
    lengths = {name: draw.integers(1, 7, size) for name in ("chosen", "rejected")}
    sides, drawn = {}, [{} for _ in range(size)]  # type: list[dict[str, np.ndarray]]
    for name in ("chosen", "rejected"):
        longest = 8
        policy, reference = (draw.normal(0, 2, (size, longest, vocabulary)) for _ in range(2))
        labels = draw.integers(0, vocabulary, (size, longest))
        signs = draw.integers(0, 4, (size, longest))  # also off the mask, where they must not count
        mask = np.arange(longest) < lengths[name][:, None]
        for row in range(size):
            drawn[row] |= {
                f"{name}_policy": policy[row],
                f"{name}_reference": reference[row],
                f"{name}_labels": np.where(mask[row], labels[row], -100),
                f"{name}_signs": signs[row],
            }
        ours, theirs = torch.from_numpy(policy).log_softmax(-1), torch.from_numpy(reference).log_softmax(-1)
        index = torch.from_numpy(labels)[..., None]
        sides[name] = Completions(
            token_logps=ours.gather(-1, index).squeeze(-1),
            mask=torch.from_numpy(mask),
            reference_token_logps=theirs.gather(-1, index).squeeze(-1),
            changed=torch.from_numpy(signs) > 0,
            token_divergence=(theirs.exp() * (theirs - ours)).sum(-1),
        )
    found = RRPO(beta=beta, alpha=alpha)(LossInputs(sides=sides, p=torch.ones(size, dtype=torch.float64))).loss
    expected = [in_numpy(beta, alpha, pair) for pair in drawn]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def with_divergence(inputs: LossInputs, seed: int) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(inputs.chosen.mask.shape, generator=generator, dtype=torch.float64) * inputs.chosen.mask
    chosen = replace(inputs.chosen, token_divergence=values.requires_grad_())
    return replace(inputs, sides={**inputs.sides, "chosen": chosen})


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_match_finite_differences(seed: int) -> None:
    inputs = with_divergence(random_pairs(seed), seed)

    def loss(chosen: Tensor, rejected: Tensor, divergence: Tensor) -> Tensor:
        sides = {
            "chosen": replace(inputs.chosen, token_logps=chosen, token_divergence=divergence),
            "rejected": replace(inputs.rejected, token_logps=rejected),
        }
        return RRPO(alpha=0.3)(replace(inputs, sides=sides)).loss

    given = (inputs.chosen.token_logps, inputs.rejected.token_logps, inputs.chosen.divergence)
    assert torch.autograd.gradcheck(loss, given)


@given(seed=st.integers(0, 10_000))
def test_only_phrases_carry_rank_gradient_and_only_the_chosen_side_kl(seed: int) -> None:
    inputs = with_divergence(random_pairs(seed), seed)
    RRPO()(inputs).loss.sum().backward()
    for one in (inputs.chosen, inputs.rejected):
        assert one.changed is not None
        assert one.token_logps.grad is not None
        assert (one.token_logps.grad[~one.changed] == 0).all(), "exactly 0"
        assert (one.token_logps.grad[one.changed] != 0).all()
    gradient = inputs.chosen.divergence.grad
    assert gradient is not None
    assert torch.equal(gradient, 0.05 * inputs.chosen.mask.double()), "every answer token, tagged or not, nothing else"


def test_signs_off_the_mask_do_not_count() -> None:
    inputs = with_divergence(random_pairs(4), 4)
    everywhere = {
        name: replace(one, changed=one.changed | ~one.mask)  # type: ignore[operator]
        for name, one in inputs.sides.items()
    }
    expected, found = RRPO()(inputs), RRPO()(replace(inputs, sides=everywhere))
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    assert torch.equal(found.metrics["chosen_phrase_tokens"], expected.metrics["chosen_phrase_tokens"])


def test_a_batch_in_which_every_token_is_tagged_is_dpo() -> None:
    """The authors' code drops the smallest sign, which is a phrase when no token is untagged."""
    inputs = random_pairs(2)
    tagged = {name: replace(one, changed=one.mask) for name, one in inputs.sides.items()}
    everything = replace(inputs, sides=tagged)
    torch.testing.assert_close(RRPO(beta=0.1, alpha=0.0)(everything).loss, DPO(beta=0.1)(everything).loss)


def test_needs_and_what_is_missing() -> None:
    assert RRPO().needs == {"chosen", "rejected", "reference", "changed", "phrases", "divergence"}
    assert RRPO(alpha=0.0).needs == DPO(unchanged_weight=0.0).needs
    with pytest.raises(ValueError, match="'divergence'"):
        RRPO()(random_pairs(0))
    bare = random_pairs(0)
    sides = {name: replace(one, changed=None) for name, one in bare.sides.items()}
    with pytest.raises(ValueError, match="changed spans"):
        RRPO()(replace(bare, sides=sides))
    with pytest.raises(ValueError, match=r"beta is 0; it must be more than 0"):
        RRPO(beta=0)
    with pytest.raises(ValueError, match=r"alpha is -1; it must be 0 or more"):
        RRPO(alpha=-1)
