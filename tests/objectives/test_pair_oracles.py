"""Pair objectives against the specification's numbers on its fixture F1, and the traps of released code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import Objective
from mmalign.objectives.contexts import D2O, MAPL, MDPO, SELM, RationaleORPO, Rationales
from mmalign.objectives.dpo import UPO, ConservativeDPO, Cream, MaskDPO, SticDPO
from mmalign.objectives.free import CPO, ORPO, TPO, LengthTPO, SimPO
from mmalign.objectives.internal import SCIR, PreferenceDegree
from mmalign.objectives.noisy import DNO, LCPO, OSP, Difficulty, Selfie
from mmalign.objectives.pairwise import (
    AOT,
    BCO,
    EXO,
    FDPO,
    IPO,
    KTO,
    NCA,
    APODown,
    APOZero,
    DiscoPOP,
    HardSPPO,
    Hinge,
    LengthDPO,
    NormalisedDPO,
    UnpairedAOT,
)
from mmalign.objectives.sources import DynamicDPO, InfiFPO, PoFT
from mmalign.objectives.squares import IREPO, SPPO, SRPO, Sharpening
from tests.objectives.fixtures import close, f1, given, pairs, side, spread, summed, tensor


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (ConservativeDPO(), [0.618139, 0.755957]),
        (SticDPO(), [0.609858, 0.790488]),
        (Hinge(), [0.8, 1.15]),
        (IPO(), [20.702500, 27.344184]),
        (EXO(), 2.722284),
        (NCA(), 1.381841),
        (BCO(), 1.375825),
        (HardSPPO(), [32.0, 66.25]),
        (AOT(), 0.684548),
        (UnpairedAOT(), 0.680803),
        (APOZero(), 0.993759),
        (APODown(), 1.000039),
        (DiscoPOP(), 0.802129),
        (NormalisedDPO(), 0.687786),
        (FDPO(divergence="forward_kl"), 0.670878),
        (FDPO(divergence="js"), 0.685565),
        (FDPO(divergence="alpha"), 0.678770),
        (FDPO(divergence="reverse_kl"), 0.684548),
        (CPO(), [0.554355, 0.798139]),
        (SimPO(), [0.974077, 0.474077]),
        (ORPO(), [0.0693147, 0.0461161]),
        (LengthTPO(beta=0.1, sft_weight=0.0), [0.974077, 0.943249]),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_f1_oracles(objective: Objective, expected: float | list[float]) -> None:
    loss = objective(f1()).loss
    close(loss if isinstance(expected, list) else loss.mean(), expected)


def test_likelihood_terms_of_losses_without_a_reference() -> None:
    """A mean over all chosen tokens of the step, 2.666667 here."""
    for objective, expected in ((CPO(), 3.342914), (ORPO(), 2.724382)):
        output = objective(f1())
        close(output.loss.mean() + output.pooled["chosen"].sum() / 12, expected)
    inputs = given(f1(), gold=side([[-1.3], [-1.3]], None))
    for objective, expected in ((TPO(beta=0.1), 1.976247), (LengthTPO(beta=0.1), 2.258663)):
        output = objective(inputs)
        assert set(output.pooled) == {"gold"}
        close(output.loss.mean() + output.pooled["gold"].sum() / 2, expected)


def test_optimal_transport_sorts_over_the_batch() -> None:
    n_w, n_l = (4, 8), (5, 6)
    inputs = pairs(
        side(spread((-12, -20), n_w), spread((-13, -19), n_w)),
        side(spread((-15, -18), n_l), spread((-13.5, -19.8), n_l)),
    )
    close(AOT()(inputs).loss.mean(), 0.707562)
    assert AOT().needs >= {"whole_step"}


def test_what_optimal_transport_gives_a_pair_is_that_of_its_own_margin() -> None:
    """So that the pair's weight, and its name where a loss is no number, are those of what it steers."""
    inputs = f1()  # margins 3 and -2, so sorting swaps the pairs
    for one in inputs.sides.values():
        one.token_logps.requires_grad_()
    for objective in (AOT(), UnpairedAOT()):
        loss = objective(inputs).loss
        for index in range(2):
            (slope,) = torch.autograd.grad(loss[index], inputs.chosen.token_logps, retain_graph=True)
            assert slope[index].abs().sum() > 0
            assert slope[1 - index].abs().sum() == 0


def test_discopop_lowers_margins_first() -> None:
    inputs = pairs(side([[0.0]], [[0.0]]), side([[0.0]], [[0.0]]))
    inputs.chosen.token_logps.requires_grad_()
    DiscoPOP()(inputs).loss.sum().backward()
    assert inputs.chosen.token_logps.grad is not None
    slope = 0.1 * (0.25 / 0.05 * (1 - math.log(2)) - 0.75)
    assert inputs.chosen.token_logps.grad.item() == pytest.approx(slope, abs=1e-9)
    assert slope > 0


def test_kto() -> None:
    inputs = given(f1(), mismatched=summed(tensor(-4.9, -5), tensor(-5, -5)))
    output = KTO()(inputs)
    assert output.loss.mean().item() == pytest.approx(0.496880, abs=6e-7)
    assert output.metrics["kl"].tolist() == pytest.approx([0.05, 0.05])
    lower = given(f1(), mismatched=summed(tensor(-6, -5), tensor(-5, -5)))
    assert KTO()(lower).metrics["kl"].tolist() == [0.0, 0.0], "an estimate below 0 counts as 0"


def test_length_dpo_weighs_the_tail() -> None:
    """Of pair 0 the last of 5 rejected tokens is tail, of pair 1 the last two of 8 chosen ones."""
    log_ratios = (1 - -1 * 4.5 / 5, -0.5 * 7 / 8 - 1)
    close(LengthDPO()(f1()).loss, [math.log1p(math.exp(-0.1 * d)) for d in log_ratios], 1e-9)
    close(LengthDPO(tail_weight=1.0)(f1()).loss, [0.598139, 0.770957])


def test_lcpo() -> None:
    objective = LCPO()
    inputs = replace(f1(), memory={"reliability": tensor(0.9)})
    for one in (inputs.chosen, inputs.rejected):
        one.token_logps.requires_grad_()
    output = objective(inputs)
    close(output.metrics["posterior"], [0.916615, 0.885667])
    close(output.loss, [0.614816, 0.753807])
    close(objective.remember(inputs.memory, output.seen)["reliability"], [0.900114])
    output.loss.sum().backward()
    assert inputs.chosen.token_logps.grad is not None
    # Were the weight not detached, it would be [-0.038207, -0.040791].
    close(inputs.chosen.token_logps.grad[:, 0], [-0.036678, -0.042310])
    two = LCPO(annotators=2)
    memory = {"reliability": tensor(0.9, 0.9)}
    output = two(given(replace(f1(), memory=memory), annotator=tensor(0, 1)))
    close(two.remember(memory, output.seen)["reliability"], [0.901662, 0.898567])
    assert objective.start_memory()["reliability"].tolist() == pytest.approx([0.9])


def test_selfie() -> None:
    inputs = f1()
    far = {"chosen": tensor(2.5, -3), "rejected": tensor(0, 0)}
    sides = {}
    for name, one in inputs.sides.items():
        share = one.reference.clone()
        share[:, 0] += far[name]
        sides[name] = replace(one, terms={"extrapolated": share})
    objective = Selfie(extrapolation=1.0, window=2)
    window = tensor(-0.2, -0.2, 1, 1)
    output = objective(replace(inputs, sides=sides, memory={"margins": window}))
    close(output.loss, [0.598139, 0.755957])
    close(output.seen["margin"], [0.25, -0.3])
    early = objective(replace(inputs, sides=sides, memory={"margins": window}, progress=0.1))
    close(early.loss, [0.598139, 0.770957])
    after = objective.remember({"margins": window, "ages": torch.tensor([1, 1, 0, 0])}, output.seen)["margins"]
    close(after, [1, 1, 0.25, -0.3])
    # Without a model moved on the margin is beta D, without a window its threshold is 0.
    plain = Selfie()(replace(inputs, memory=Selfie().start_memory()))
    assert plain.metrics["trusted"].tolist() == [1.0, 0.0]


def test_a_short_step_does_not_cut_the_window_of_margins() -> None:
    """The last step of an epoch may hold fewer pairs; the window is one of steps."""
    objective = Selfie(window=3)
    memory = objective.start_memory()
    for count in (4, 4, 4, 1):
        memory = objective.remember(memory, {"margin": torch.full((count,), float(count))})
    assert memory["margins"].tolist() == [4.0] * 8 + [1.0]
    memory = objective.remember(memory, {"margin": torch.zeros(2)})
    assert memory["margins"].tolist() == [4.0] * 4 + [1.0, 0.0, 0.0]


def test_soft_labels() -> None:
    close(OSP()(f1([0.8, 0.6])).loss, [0.638139, 0.710957])
    close(OSP()(f1([1.0, 0.0])).loss, OSP()(f1([0.99, 0.01])).loss.tolist())
    close(Cream()(f1([0.833333333, 0.0])).loss, [0.631472, 0.620957])
    close(Cream()(f1([0.416667, 0.416667])).loss, [0.714806, 0.683457])
    alpha = tensor(0, 0.00847162)
    output = UPO(sft_weight=0.0)(f1((1 - alpha).tolist()))
    close(output.loss, [0.598139, 0.769686])
    close(UPO()(f1((1 - alpha).tolist())).loss - output.loss, [1.5, 1.25])
    rates = {"chosen_win_rate": tensor(0.75, 0.5), "rejected_win_rate": tensor(0.25, 0.6)}
    output = DNO()(given(f1(), **rates))
    close(output.metrics["label"], [0.622459, 0.475021])
    close(output.loss, [0.673647, 0.692210])


def test_squares() -> None:
    rates = {"chosen_win_rate": tensor(0.8, 0.6), "rejected_win_rate": tensor(0.2, 0.45)}
    close(SPPO(beta=0.1)(given(f1(), **rates)).loss, [4.0, 2.25])
    close(IREPO()(f1([0.8, 0.4])).loss, [1.407294, 0.065262])
    sure = IREPO(annotators=4)(f1([1.0, 1.0])).loss
    close(sure, [(0.2 - math.log(7)) ** 2, (-0.15 - math.log(7)) ** 2])
    with pytest.raises(ValueError, match="annotators is 1; it must be 2 or more"):
        IREPO(annotators=1)  # whatever the label, its target would be 0
    rewards = {"chosen_reward": tensor(-5, -6), "rejected_reward": tensor(-7, -4)}
    close(Sharpening()(given(f1(), **rewards)).loss, [3.24, 3.4225])


def test_srpo() -> None:
    zero = tensor(0, 0)
    shown = {
        "chosen_after_rejected": summed(tensor(1.5, 0.2), zero),
        "rejected_after_chosen": summed(tensor(-0.5, 0.4), zero),
        "chosen_after_chosen": summed(tensor(0.3, -0.1), zero),
        "rejected_after_rejected": summed(tensor(0.1, 0.2), zero),
    }
    output = SRPO()(given(f1(), **shown))
    close(output.metrics["generative_loss"], [0.090000, 0.342225])
    close(output.metrics["improvement_loss"] / 2, [0.153000, 0.276250])
    close(output.loss, [0.121500, 0.3092375])
    assert len(SRPO(alpha=0.0).needs) == len(SRPO().needs) - 4
    close(SRPO(alpha=0.0)(given(f1(), **shown)).loss, [0.090000, 0.342225])
    # Deterministic preferences have an exact optimum: every square is 0 there.
    best = {
        name: summed(value, zero) for name, value in zip(shown, tensor([5, 5], [0, 0], [5, 5], [0, 0]), strict=True)
    }
    optimal = pairs(side([[5.0], [5.0]], [[0.0], [0.0]]), side([[0.0], [0.0]], [[0.0], [0.0]]))
    close(SRPO()(given(optimal, **best)).loss, [0.0, 0.0])


def test_selm() -> None:
    inputs = given(f1(), greedy=summed(tensor(-10, -16), tensor(-10.5, -15)))
    close(SELM()(inputs).loss, [0.683202, 0.700665])
    close(SELM(beta=0.1, alpha=0.1)(inputs).loss, [0.603139, 0.760957])


def test_d2o() -> None:
    own = summed(tensor([-9, -11, -10], [-8, -7.5, -9]), tensor([-9.5, -11, -11], [-8.2, -8, -8.5]))
    rejected = f1().rejected
    inputs = replace(f1(), sides={"rejected": rejected, "samples": own})
    close(D2O()(inputs).loss, [0.620957, 0.740902])
    close(D2O()(inputs).metrics["margin"], [0.15, -0.093333], 1e-6)
    none = replace(inputs, sides={"rejected": rejected, "samples": replace(own, mask=own.mask & False)})
    with pytest.raises(ValueError, match="no samples of its own"):
        D2O()(none)


def test_mdpo() -> None:
    damaged = summed(tensor(-16, -19), tensor(-15, -18.5))
    output = MDPO()(given(f1(), chosen_damaged=damaged))
    close(output.loss, [1.840674, 2.182564])
    close(output.metrics["conditional_margin"], [0.2, 0.0])
    text = replace(damaged, mask=damaged.mask & torch.tensor([[True], [False]]))
    close(MDPO()(given(f1(), chosen_damaged=text)).loss, [1.840674, 2.182564 - math.log(2)])


def test_rationales_are_likelihood_and_not_wrapped() -> None:
    told = side(spread((-30, -24), (3, 2)), None)
    inputs = given(f1(), rationale=told)
    close(Rationales()(inputs).loss, [0.628139, 0.794957])
    assert Rationales()(inputs).loss.mean().item() != pytest.approx(1.391287, abs=1e-3), "the released wrapped form"
    output = RationaleORPO(gamma=0.001)(inputs)
    close(output.loss, [0.0693147 + 0.03, 0.0461161 + 0.024])
    assert set(output.pooled) == {"chosen"}
    missing = replace(told, mask=told.mask & torch.tensor([[True], [False]]))
    close(Rationales()(given(f1(), rationale=missing)).loss, [0.628139, 0.770957])


def test_mapl() -> None:
    sides = {
        "fulfilled": summed(tensor(-12, -20), tensor(-12.5, -19)),
        "missed": summed(tensor(-13, -18.5), tensor(-12.8, -18)),
        "chosen_favoured": summed(tensor(2.6, -1.0), tensor(0, 0)),
        "rejected_favoured": summed(tensor(0, 0), tensor(0, 0)),
    }
    inputs = given(f1(), **sides)
    plain = MAPL(intra_weight=0.0, inter_weight=0.0)
    assert plain.needs == {"chosen", "rejected", "reference"}
    close(plain(inputs).loss, [0.598139, 0.770957])
    intra = MAPL(inter_weight=0.0)(inputs).loss - plain(inputs).loss
    assert intra.mean().item() == pytest.approx(0.688610, abs=6e-7)
    inter = MAPL(intra_weight=0.0)(inputs).loss - plain(inputs).loss
    close(inter, [0.663597, 0.668460])
    assert MAPL()(inputs).loss.mean().item() == pytest.approx(2.039186, abs=1e-6)


def test_infifpo() -> None:
    sources = {
        "chosen_sources": tensor([-3, -3.5], [-2, -2.6]),
        "rejected_sources": tensor([-3.2, -2.5], [-3.3, -2.9]),
    }
    close(InfiFPO()(given(f1(), **sources)).loss, [0.281150, 2.126928])
    close(InfiFPO(fusion="mean")(given(f1(), **sources)).loss, [0.443426, 1.349030])


def test_dynamic_beta() -> None:
    inputs = given(f1(), gap=tensor(2, 0.5))
    output = DynamicDPO()(inputs)
    close(output.metrics["beta"], [0.131606, 0.111060])
    close(output.loss, [0.570176, 0.779907])
    close(output.loss.mean() + output.pooled["chosen"].sum() / 12, 1.341709)
    wrong = DynamicDPO()(given(f1(), gap=tensor(-1, -1))).metrics["beta"]
    assert wrong.tolist() == pytest.approx([0.1, 0.1]), "the released code lowers it to 0.067564"
    assert DynamicDPO(sft_weight=0.0, most=0.0)(inputs).loss.mean().item() == pytest.approx(0.684548, abs=6e-7)


def test_poft() -> None:
    means = tensor([-1.8, -2.4, -2.1], [-1.4, -1.2, -1.3])
    inputs = given(pairs(side([[-2.0], [-1.5]], None), side([[0.0], [0.0]], None)), teacher_means=means)
    output = PoFT()(inputs)
    close(output.metrics["margin"], [0.1, -0.2])
    close(output.loss, [0.644397, 0.798139])
    gap = tensor([-1.8, -2.4, math.nan], [math.nan] * 3)
    close(PoFT()(given(inputs, teacher_means=gap)).metrics["margin"], [0.1, -1.5])


def test_ranking_difficulty() -> None:
    inputs = pairs(side([[-1.0], [-1.0]], [[0.5], [-1.2]]), side([[-1.0], [-1.0]], [[0.0], [0.0]]))
    close(
        Difficulty(beta=1.0)(inputs).metrics["loss_to_rank_right"],
        [math.log1p(math.exp(0.5)), math.log1p(math.exp(-1.2))],
    )
    close(Difficulty()(inputs).metrics["loss_to_rank_right"], [0.718460, 0.634946])


def test_scir() -> None:
    logit = tensor(0.7, 0.3).logit()
    verdicts = {
        "verdict_chosen": summed(torch.stack((logit, logit), -1)),
        "verdict_rejected": summed(tensor([0, 0], [0, 0])),
    }
    output = SCIR()(given(f1(), **verdicts))
    close(output.metrics["symmetric_kl"], [0.048601, 0.056680])
    close(output.metrics["entropy"], [0.649518, 0.650603])
    close(output.metrics["preference_loss"], [0.598139, 0.620957])
    consistency = (output.loss - output.metrics["preference_loss"]).mean().item()
    assert consistency == pytest.approx(0.702701, abs=6e-7)
    opposed = {**verdicts, "verdict_chosen": summed(torch.stack((-logit, -logit), -1))}
    assert SCIR()(given(f1(), **opposed)).metrics["preference_loss"].tolist() == [0.0, 0.0]
    half = summed(torch.stack((logit[:1].repeat(2), logit[:1].repeat(2)), -1))
    one_agrees = SCIR()(given(f1(), **{**verdicts, "verdict_chosen": half})).metrics["preference_loss"]
    assert one_agrees.mean().item() == pytest.approx(0.598139, abs=6e-7), "a mean over the kept pair"


def test_preference_degree() -> None:
    degraded = replace(summed(tensor([-1, -1])), score=tensor([[2, 0.5, -1], [0.1, 0.2, 1.5]]))
    one = pairs(side([[1.0]], [[0.0]]), side([[-1.0]], [[0.0]]))
    output = PreferenceDegree()(given(one, degraded=degraded, degrees=tensor([0, 1])))
    close(output.metrics["degree_loss"], [(0.241311 + 1.718137) / 2])
    close(output.loss, [0.598139 + 0.1 * 0.979724])


def test_mask_dpo_is_found_by_its_name() -> None:
    assert MaskDPO().needs == {"chosen", "rejected", "reference", "changed", "phrases"}
    assert MaskDPO().unchanged_weight == 0
