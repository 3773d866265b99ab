"""DPO, its noise-aware forms and its likelihood term against the specification's numbers, and what must always hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmalign.objectives import DPO, SFT, LossInputs, LossOutput, Objective, RobustDPO, find_objective
from mmalign.objectives.terms import reduce_tokens, soft_pair
from tests.objectives.fixtures import f1, pairs, random_pairs, side, spread, sums

ALL = (
    DPO(),
    DPO(label_smoothing=0.1, sft_weight=0.5),
    DPO(changed_weight=2.0, unchanged_weight=0.5),
    RobustDPO(flip_rate=0.2),
)


def close(values: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=values.dtype), atol=6e-7, rtol=0.0)


@pytest.mark.parametrize(
    ("objective", "expected", "mean"),
    [
        (DPO(), [0.598139, 0.770957], 0.684548),
        (DPO(label_smoothing=0.1), [0.618139, 0.755957], 0.687048),
        (RobustDPO(flip_rate=0.1), [0.573139, 0.789707], 0.681423),
        (RobustDPO(flip_rate=0.0), [0.598139, 0.770957], 0.684548),
        (DPO(sft_weight=1 / 1024), [0.609858, 0.790488], 0.700173),
    ],
)
def test_f1_oracles(objective: Objective, expected: list[float], mean: float) -> None:
    loss = objective(f1()).loss
    close(loss, expected)
    assert loss.mean().item() == pytest.approx(mean, abs=6e-7)


def test_smoothing_is_a_soft_label() -> None:
    """MCTS-DPO: each pair has its own flip rate; the same numbers come from p = 1 - eps."""
    close(DPO()(f1(p=[1 - 0.166667, 1 - 0.333333])).loss, [0.631472, 0.720957])
    torch.testing.assert_close(DPO()(f1(p=[0.9, 0.9])).loss, DPO(label_smoothing=0.1)(f1()).loss)
    halved = DPO(label_smoothing=0.25)(f1(p=[0.5, 0.5])).loss
    torch.testing.assert_close(halved, DPO()(f1(p=[0.5, 0.5])).loss)


def test_stic_worked_examples() -> None:
    stic = sums(-20, -22, -30, -28)
    assert DPO()(stic).loss.item() == pytest.approx(0.513015, abs=6e-7)
    assert DPO(sft_weight=1 / 1024)(stic).loss.item() == pytest.approx(0.532547, abs=6e-7)
    assert DPO(sft_weight=1.0)(stic).loss.item() == pytest.approx(20.513015, abs=6e-7)
    equal = sums(-20, -22, -20, -22)
    assert DPO(sft_weight=1 / 1024)(equal).loss.item() == pytest.approx(0.712678, abs=6e-7)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, -0.040131), (1 / 1024, -0.040131 - 0.000977)])
def test_stic_gradient_of_the_chosen_log_probability(weight: float, expected: float) -> None:
    inputs = sums(-20, -22, -30, -28)
    inputs.chosen.token_logps.requires_grad_()
    DPO(sft_weight=weight)(inputs).loss.sum().backward()
    assert inputs.chosen.token_logps.grad is not None
    assert inputs.chosen.token_logps.grad.item() == pytest.approx(expected, abs=1e-6)


def test_likelihood_term_sums_or_averages_over_the_pairs_tokens() -> None:
    plain = DPO()(f1()).loss
    summed = DPO(sft_weight=0.5)(f1()).loss - plain
    mean = DPO(sft_weight=0.5, nll_reduction="token_mean")(f1()).loss - plain
    close(summed, [6.0, 10.0])
    close(mean, [1.5, 1.25])


def test_self_consistency_worked_examples() -> None:
    assert DPO()(sums(-42, -45, -50, -48)).loss.item() == pytest.approx(0.474077, abs=6e-7)
    assert DPO()(sums(-42, -42, -48, -48)).loss.item() == pytest.approx(math.log(2), abs=1e-12)
    long = pairs(side(spread([-42], [30]), spread([-45], [30])), side(spread([-50], [40]), spread([-48], [40])))
    assert DPO()(long).loss.item() == pytest.approx(0.474077, abs=6e-7), "sums, not means (which give 0.685676)"


def apasi(changed: bool) -> LossInputs:
    """Worked example A; `changed` marks positions 2 and later of both sides (example C)."""
    chosen = side([[-1, -0.5, -2, -0.5]], [[-1.2, -0.6, -2.2, -0.6]], [[0, 0, 1, 1]] if changed else [[0, 0, 0, 0]])
    rejected = side(
        [[-1, -0.5, -3, -2.5, -1]],
        [[-1.1, -0.5, -2.6, -2, -1]],
        [[0, 0, 1, 1, 1]] if changed else [[0, 0, 0, 0, 0]],
    )
    return pairs(chosen, rejected)


def test_apasi_worked_examples() -> None:
    assert DPO()(apasi(changed=True)).loss.item() == pytest.approx(0.625595, abs=6e-7)
    assert DPO(changed_weight=2.0)(apasi(changed=False)).loss.item() == pytest.approx(0.625595, abs=6e-7)
    weighted = DPO(changed_weight=2.0)(apasi(changed=True))
    assert weighted.loss.item() == pytest.approx(0.571573, abs=6e-7)
    assert weighted.metrics["margin"].item() == pytest.approx(0.26, abs=1e-9)


def test_apasi_means_come_from_the_terms() -> None:
    """Example B, the mean reduction that DPO does not use: margin 0.31."""
    inputs = apasi(changed=False)
    ratios = [
        reduce_tokens(one.token_logps - one.reference, one.mask, mean=True) for one in (inputs.chosen, inputs.rejected)
    ]
    margin = ratios[0] - ratios[1]
    assert margin.item() == pytest.approx(0.31, abs=1e-9)
    assert soft_pair(margin, scale=0.1).item() == pytest.approx(0.677767, abs=6e-7)


def f2(*, marked: bool = True) -> LossInputs:
    """Log-probs per token, with the key spans of both sides."""
    chosen = side(
        [[-0.5, -1, -2, -0.2], [-1.2, -0.4, -0.9]],
        [[-0.7, -1.1, -1.5, -0.4], [-1, -0.8, -1]],
        [[0, 1, 1, 0], [1, 0, 0, 0]] if marked else None,
    )
    rejected = side(
        [[-1.5, -0.6, -0.2], [-0.8, -2.2, -0.5, -1.1]],
        [[-1, -0.9, -0.3], [-0.6, -1.6, -0.7, -1]],
        [[0, 1, 0, 0], [0, 1, 1, 0]] if marked else None,
    )
    return pairs(chosen, rejected)


def test_mask_dpo_is_dpo_on_marked_tokens() -> None:
    close(DPO()(f2(marked=False)).loss, [0.688160, 0.644397])
    masked = DPO(unchanged_weight=0.0)(f2())
    close(masked.loss, [0.728760, 0.683197])
    close(masked.metrics["margin"], [-0.07, 0.02])
    close(masked.metrics["chosen_logps_change"], [0.0, 0.3])
    close(DPO(changed_weight=0.0, unchanged_weight=1.0)(f2()).loss, [math.log1p(math.exp(-0.08))] * 2)


def test_mask_dpo_leaves_the_other_tokens_alone() -> None:
    inputs = f2()
    for one in inputs.sides.values():
        one.token_logps.requires_grad_()
    DPO(unchanged_weight=0.0)(inputs).loss.sum().backward()
    for one in inputs.sides.values():
        assert one.changed is not None
        assert one.token_logps.grad is not None
        assert (one.token_logps.grad[~one.changed] == 0).all()
        assert (one.token_logps.grad[one.changed] != 0).all()


def test_tokens_of_weight_0_may_be_infinite() -> None:
    inputs = f2()
    values = inputs.chosen.token_logps.clone()
    values[0, 0] = -math.inf
    values.requires_grad_()
    sides = {**inputs.sides, "chosen": replace(inputs.chosen, token_logps=values)}
    loss = DPO(unchanged_weight=0.0)(replace(inputs, sides=sides)).loss
    close(loss, [0.728760, 0.683197])
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def pooled_loss(output: LossOutput, inputs: LossInputs) -> float:
    """The loss of a step that holds these pairs only."""
    tokens = int(inputs.chosen.mask.sum())
    return output.loss.mean().item() + output.pooled["chosen"].sum().item() / tokens


TEMPLE = DPO(beta=0.1, sft_weight=1.0, nll_reduction="pooled")


def test_temple_worked_examples() -> None:
    a = pairs(
        side([[-0.5, -1, -0.3, -0.2]], [[-0.5, -1, -0.3, -0.6]]),
        side([[-1.5, -1.5, -1.5, -1.5]], [[-1.25, -1.25, -1.25, -1.25]]),
    )
    output = TEMPLE(a)
    assert output.metrics["margin"].item() == pytest.approx(0.14, abs=1e-9)
    assert output.loss.item() == pytest.approx(0.625595, abs=6e-7)
    assert output.pooled["chosen"].item() / 4 == pytest.approx(0.5, abs=1e-9)
    assert pooled_loss(output, a) == pytest.approx(1.125595, abs=6e-7)
    rows = [[-1.0] * 2, [-0.25] * 8]
    b = pairs(side(rows, rows), side(rows, rows))
    output = TEMPLE(b)
    assert output.pooled["chosen"].sum().item() / 10 == pytest.approx(0.4, abs=1e-9), "not 0.625, the mean of means"
    assert output.metrics["nll"].mean().item() == pytest.approx(0.625, abs=1e-9)
    assert pooled_loss(output, b) == pytest.approx(1.093147, abs=6e-7)
    assert DPO(sft_weight=1.0, nll_reduction="token_mean")(b).loss.mean().item() == pytest.approx(1.318147, abs=6e-7)


def test_pooled_likelihood_alone_is_sft() -> None:
    inputs = random_pairs(5)
    expected = 0.3 * SFT()(inputs).pooled["chosen"]
    torch.testing.assert_close(DPO(sft_weight=0.3, nll_reduction="pooled")(inputs).pooled["chosen"], expected)


def test_sft_pools_over_tokens() -> None:
    output = SFT()(f1())
    assert output.loss.tolist() == [0.0, 0.0]
    assert output.pooled["chosen"].sum().item() / 12 == pytest.approx(2.666667, abs=6e-7)


def test_metrics() -> None:
    metrics = DPO()(f1()).metrics
    close(metrics["chosen_reward"], [0.1, -0.05])
    close(metrics["rejected_reward"], [-0.1, 0.1])
    close(metrics["margin"], [0.2, -0.15])
    close(metrics["accuracy"], [1.0, 0.0])
    close(metrics["chosen_logps"], [-12.0, -20.0])
    close(metrics["rejected_logps"], [-15.0, -18.0])
    close(metrics["chosen_logps_change"], [1.0, -0.5])
    close(metrics["rejected_logps_change"], [-1.0, 1.0])
    assert all(not value.requires_grad for value in DPO(sft_weight=1.0)(random_pairs(0)).metrics.values())


@pytest.mark.parametrize("objective", ALL, ids=repr)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_match_finite_differences(objective: Objective, seed: int) -> None:
    inputs = random_pairs(seed)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        sides = {
            "chosen": replace(inputs.chosen, token_logps=chosen),
            "rejected": replace(inputs.rejected, token_logps=rejected),
        }
        return objective(replace(inputs, sides=sides)).loss

    assert torch.autograd.gradcheck(loss, (inputs.chosen.token_logps, inputs.rejected.token_logps))


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_reference_label_and_padding_carry_no_gradient(objective: Objective) -> None:
    inputs = random_pairs(3)
    inputs.p.requires_grad_()
    for one in (inputs.chosen, inputs.rejected):
        assert one.reference_token_logps is not None
        one.reference_token_logps.requires_grad_()
    objective(replace(inputs, p=inputs.p)).loss.sum().backward()
    assert inputs.p.grad is None
    for one in (inputs.chosen, inputs.rejected):
        assert one.reference_token_logps is not None
        assert one.reference_token_logps.grad is None
        assert one.token_logps.grad is not None
        assert one.token_logps.grad[one.mask].abs().min() > 0
        assert one.token_logps.grad[~one.mask].abs().sum() == 0


@pytest.mark.parametrize("objective", [*ALL, SFT()], ids=repr)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_margins_stay_finite(objective: Objective, size: float) -> None:
    inputs = pairs(side([[size, -0.5]], [[0.0, -0.5]], [[1, 0]]), side([[-size, -0.5]], [[0.0, -0.5]], [[1, 0]]))
    for dtype in (torch.float32, torch.float64):
        sides = {
            name: replace(
                one,
                token_logps=one.token_logps.to(dtype).requires_grad_(),
                reference_token_logps=one.reference.to(dtype),
            )
            for name, one in inputs.sides.items()
        }
        output = objective(LossInputs(sides=sides, p=inputs.p.to(dtype)))
        total = output.loss.sum() + sum(values.sum() for values in output.pooled.values())
        assert output.loss.dtype == dtype
        assert total.isfinite()
        total.backward()
        gradient = sides["chosen"].token_logps.grad
        assert gradient is not None
        assert gradient.isfinite().all()


def test_robust_loss_is_unbounded_below_as_the_paper_says() -> None:
    """At eps = .1 and beta D = 50 the loss is -6.25: the values are not clipped."""
    assert RobustDPO(flip_rate=0.1)(sums(500, 0, 0, 0)).loss.item() == pytest.approx(-6.25, abs=1e-6)


def test_smoothed_loss_is_least_at_the_logit_of_its_belief() -> None:
    best = math.log(0.9 / 0.1) / 0.1
    values = [DPO(label_smoothing=0.1)(sums(margin, 0, 0, 0)).loss.item() for margin in (best - 1, best, best + 1)]
    assert min(values) == values[1] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-9)


def test_empty_answer_counts_as_no_change() -> None:
    empty = side([[-1.0], []], [[-2.0], []], length=1)
    inputs = pairs(empty, side([[-1.0], [-1.0]], [[-1.0], [-1.0]]))
    close(
        DPO(sft_weight=1.0, nll_reduction="token_mean")(inputs).loss,
        [-math.log(1 / (1 + math.exp(-0.1))) + 1, 0.693147],
    )


def test_infinite_values_off_the_mask_are_never_read() -> None:
    inputs = f1()
    values = inputs.chosen.token_logps.masked_fill(~inputs.chosen.mask, -math.inf).requires_grad_()
    sides = {**inputs.sides, "chosen": replace(inputs.chosen, token_logps=values)}
    loss = DPO(sft_weight=0.1)(replace(inputs, sides=sides)).loss
    torch.testing.assert_close(loss, DPO(sft_weight=0.1)(inputs).loss)
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


@given(seed=st.integers(0, 10_000), extra=st.integers(0, 4))
def test_padding_and_order_change_nothing(seed: int, extra: int) -> None:
    inputs = random_pairs(seed)
    shuffled = torch.randperm(inputs.p.shape[0], generator=torch.Generator().manual_seed(seed))

    def moved(values: Tensor | None) -> Tensor:
        assert values is not None
        return torch.nn.functional.pad(values[shuffled], (0, extra))

    sides = {
        name: replace(
            one,
            token_logps=moved(one.token_logps),
            mask=moved(one.mask),
            reference_token_logps=moved(one.reference_token_logps),
            changed=moved(one.changed),
        )
        for name, one in inputs.sides.items()
    }
    for objective in ALL:
        expected = objective(inputs).loss[shuffled]
        torch.testing.assert_close(objective(LossInputs(sides=sides, p=inputs.p[shuffled])).loss, expected)


@pytest.mark.parametrize("name", ["dpo", "rdpo", "rrpo", "sft"])
def test_objectives_are_found_by_name(name: str) -> None:
    assert find_objective(name).name == name


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LookupError, match="no objective is called 'dop'; did you mean 'dpo'"):
        find_objective("dop")
    with pytest.raises(LookupError, match="mmalign list objectives"):
        find_objective("quadratic")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPO(beta=0.0), "beta is 0.0; it must be more than 0"),
        (lambda: DPO(beta=math.nan), "beta is nan"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing is 0.5; it must be at least 0 and below 0.5"),
        (lambda: DPO(sft_weight=-1.0), "sft_weight is -1.0"),
        (lambda: DPO(nll_reduction="mean"), "nll_reduction is 'mean'; it must be sum, token_mean or pooled"),
        (lambda: DPO(changed_weight=-1.0), "changed_weight is -1.0"),
        (lambda: DPO(unchanged_weight=-1.0), "unchanged_weight is -1.0"),
        (lambda: RobustDPO(flip_rate=0.5), "flip_rate is 0.5"),
        (lambda: RobustDPO(beta=-1.0), "beta is -1.0"),
    ],
)
def test_wrong_parameters_are_named(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make()


def test_needs_name_what_is_read() -> None:
    assert DPO().needs == {"chosen", "rejected", "reference"}
    assert DPO(changed_weight=2.0).needs == {"chosen", "rejected", "reference", "changed"}
    assert DPO(unchanged_weight=0.0).needs == {"chosen", "rejected", "reference", "changed", "phrases"}
    assert SFT().needs == {"chosen"}
    bare = pairs(side([[-1.0]], None), side([[-1.0]], None))
    with pytest.raises(ValueError, match="'reference'"):
        DPO()(bare)
    with pytest.raises(ValueError, match="changed spans"):
        DPO(changed_weight=2.0)(sums(-1, -1, -1, -1))
