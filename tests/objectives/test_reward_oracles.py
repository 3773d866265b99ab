"""Reward-model objectives and heads against the specification's numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.objectives import Completions, LossInputs
from mmalign.objectives.heads import (
    HEADS,
    AttributeHead,
    GatedScore,
    IdealPoint,
    ScalarHead,
    distance,
    fitted,
    gated,
    ridge,
    spearman,
    verbosity_penalty,
)
from mmalign.objectives.internal import Regret
from mmalign.objectives.reward import (
    CRM,
    MORE,
    PAL,
    ArmoRM,
    BradleyTerry,
    Eurus,
    HelpSteer,
    StrengthRM,
    contrast,
    helpsteer_score,
)
from mmalign.objectives.shaping import min_norm_weights, small_loss
from tests.objectives.fixtures import close, tensor


def scored(chosen: Tensor, rejected: Tensor, **values: Tensor) -> LossInputs:
    """F5 and its like: scores (B,) or (B, A) of both sides."""

    def side(score: Tensor) -> Completions:
        size = score.shape[0]
        ones = torch.ones(size, 1)
        return Completions(token_logps=-ones, mask=ones.bool(), score=score)

    p = torch.ones(chosen.shape[0], dtype=torch.float64)
    return LossInputs(sides={"chosen": side(chosen), "rejected": side(rejected)}, p=p, values=values)


CHOSEN, REJECTED = (1.2, -0.3), (0.4, 0.1)


def f5(**values: Tensor) -> LossInputs:
    return scored(tensor(*CHOSEN), tensor(*REJECTED), **values)


def test_bradley_terry_and_eurus() -> None:
    close(BradleyTerry()(f5()).loss, [0.371101, 0.913015])
    close(Eurus()(f5(absolute=tensor(1, 1))).loss, [1.547398, 2.511767])
    close(Eurus()(f5(absolute=tensor(0, 0))).loss, [0.371101, 0.913015])
    assert BradleyTerry()(f5()).metrics["accuracy"].tolist() == [1.0, 0.0]


def test_strength() -> None:
    close(StrengthRM(mode="smoothing")(f5()).loss, [0.451101, 0.873015])
    close(StrengthRM()(f5(strength=tensor(0.8, -0.2))).loss, [0.693147, 0.798139])
    close(StrengthRM(mode="flip")(f5(strength=tensor(0.8, -0.2))).loss, [0.371101, 0.513015])
    with pytest.raises(ValueError, match="mode is 'mean'"):
        StrengthRM(mode="mean")  # type: ignore[arg-type]


def test_contrast() -> None:
    first, second = tensor([1, 0], [0.6, 0.8]), tensor([0.8, 0.6], [0, 1])
    close(contrast(first, second, 0.05), [0.0, 3.239953])
    close(contrast(first, second, 0.5), [0.183901, 0.865893])
    close(contrast(first[:1], second[:1], 0.05), [0.0])
    inputs = f5()
    zero = torch.zeros(2, 2, dtype=torch.float64)
    states = {"chosen": first, "rejected": zero, "chosen_view": second, "rejected_view": zero}
    sides = {name: replace(inputs.side(name.removesuffix("_view")), state=state) for name, state in states.items()}
    objective = StrengthRM(mode="smoothing", contrast=2.0, temperature=0.5)
    assert objective.needs >= {"states", "side:chosen_view", "whole_step"}
    close(objective(replace(inputs, sides=sides)).loss, [0.451101 + 2 * 0.183901, 0.873015 + 2 * 0.865893], 2e-6)


def test_states_of_16_bits_are_compared_in_32() -> None:
    draw = torch.Generator().manual_seed(0)
    common = 100 * torch.randn(2, 8, generator=draw)
    names = ("chosen", "rejected", "chosen_view", "rejected_view")
    states = {name: (common + torch.randn(2, 8, generator=draw)).bfloat16() for name in names}
    inputs = scored(torch.tensor(CHOSEN), torch.tensor(REJECTED), source=torch.tensor([0, 1]))
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        sides = {n: replace(inputs.side(n.removesuffix("_view")), state=states[n].to(dtype)) for n in names}
        given = replace(inputs, sides=sides, memory=MORE().start_memory())
        found[dtype] = StrengthRM(mode="smoothing", contrast=1.0)(given).loss, MORE()(given).seen["gradient"]
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32])


def test_crm() -> None:
    losses = tensor(0.2, 1.5, 0.4, 0.9), tensor(0.3, 0.2, 1.1, 0.8)
    assert small_loss(losses[1], 0.5).tolist() == [True, True, False, False]
    assert small_loss(losses[0], 0.5).tolist() == [True, False, True, False]
    assert losses[0][small_loss(losses[1], 0.5)].mean().item() == pytest.approx(0.85)
    assert losses[1][small_loss(losses[0], 0.5)].mean().item() == pytest.approx(0.70)
    assert small_loss(losses[0], 0.0).sum().item() == 1, "at least one pair is kept"
    objective = CRM(noise=0.4, ramp=0.1)
    assert [objective.keep(step / 100) for step in (0, 5, 10, 20)] == pytest.approx([1, 0.8, 0.6, 0.6])
    inputs = replace(f5(peer_margin=tensor(-1, 1)), progress=0.5)
    output = CRM(noise=0.5)(inputs)
    close(output.loss, [0.0, 2 * 0.913015], 2e-6)
    assert output.metrics["kept"].tolist() == [0.0, 1.0]


def test_more() -> None:
    gradients = tensor([1, 0], [0.5, 1])
    close(min_norm_weights(gradients), [0.6, 0.4])
    close(min_norm_weights(tensor([1, 0], [1, 0])), [0.5, 0.5])
    three = min_norm_weights(tensor([1, 0], [0.5, 1], [30, 30]))
    close(three, [0.6, 0.4, 0.0], 1e-3)
    slope = tensor(0.8, -0.5).sigmoid() - 1
    states = gradients / slope.unsqueeze(-1)
    inputs = scored(tensor(0.8, -0.5), tensor(0, 0), source=tensor(0, 1))
    sides = {
        "chosen": replace(inputs.chosen, state=states),
        "rejected": replace(inputs.rejected, state=torch.zeros_like(states)),
    }
    objective = MORE()
    inputs = replace(inputs, sides=sides, memory=objective.start_memory())
    output = objective(inputs)
    close(output.seen["gradient"], gradients.tolist())
    kept = objective.remember(inputs.memory, output.seen)["gradients"]
    unit = gradients / gradients.norm(dim=-1, keepdim=True)
    close(kept, unit.tolist())
    lam = min_norm_weights(unit)
    close(output.metrics["source_weight"], lam.tolist())
    expected = [2 * lam[0].item() * math.log1p(math.exp(-0.8)), 2 * lam[1].item() * math.log1p(math.exp(0.5))]
    close(output.loss, expected)
    # The specification's weights, given as they are: one pair per source.
    losses = tensor(0.6 * math.log1p(math.exp(-0.8)), 0.4 * math.log1p(math.exp(0.5)))
    assert (2 * losses).mean().item() == pytest.approx(0.612291, abs=6e-7)
    absent = objective.remember({"gradients": kept}, {"gradient": gradients[:1] * 0 + 3, "source": torch.tensor([0])})
    close(absent["gradients"][1], unit[1].tolist())


def test_a_source_that_has_not_been_seen_yet_takes_no_weight() -> None:
    """Its gradient is unknown, not zero: a zero would be the shortest mixture, and nothing would be learnt."""
    inputs = scored(tensor(0.8, -0.5), tensor(0, 0), source=tensor(0, 0))
    states = tensor([1, 0], [0.5, 1])
    sides = {
        "chosen": replace(inputs.chosen, state=states),
        "rejected": replace(inputs.rejected, state=torch.zeros_like(states)),
    }
    objective = MORE(sources=3)
    inputs = replace(inputs, sides=sides, memory=objective.start_memory())
    output = objective(inputs)
    close(output.metrics["source_weight"], [1.0, 1.0])
    torch.testing.assert_close(output.loss, 3 * BradleyTerry()(inputs).loss)
    later = replace(inputs, memory=objective.remember(inputs.memory, output.seen), values={"source": tensor(1, 1)})
    weights = objective(later).metrics["source_weight"]
    assert 0 < weights[0].item() < 1, "a source of an earlier step keeps its gradient"


def test_gradients_that_more_derives_are_those_of_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    head = ScalarHead(3).double()
    inputs = scored(head(states[:2]), head(states[2:]), source=tensor(0, 1))
    sides = {
        "chosen": replace(inputs.chosen, state=states[:2]),
        "rejected": replace(inputs.rejected, state=states[2:]),
    }
    output = MORE()(replace(inputs, sides=sides, memory=MORE().start_memory()))
    for row in range(2):
        loss = BradleyTerry()(inputs).loss[row]
        expected = torch.autograd.grad(loss, head.linear.weight, retain_graph=True)[0]
        torch.testing.assert_close(output.seen["gradient"][row], expected[0])


def test_pal() -> None:
    head = IdealPoint(2, 2, 1, dimension=2).double()
    with torch.no_grad():
        head.embed.weight.copy_(torch.eye(2))
        head.embed.bias.zero_()
        head.prototypes.copy_(tensor([0, 0], [2, 0]))
        head.users.copy_(tensor([0, math.log(3)]))
    user = torch.zeros(1, dtype=torch.long)
    good, bad = head(tensor([1, 1]), user), head(tensor([0, -1]), user)
    inputs = scored(good, bad)
    close(inputs.chosen.scores - inputs.rejected.scores, [0.684742])
    close(PAL(link="logistic")(inputs).loss, [0.408275])
    close(PAL()(inputs).loss, [0.315258])
    head.squared = True
    squares = scored(head(tensor([1, 1]), user), head(tensor([0, -1]), user))
    close(PAL(link="logistic")(squares).loss, [0.126928])
    assert head.penalty().item() == 0.0
    head.bound = 1.5
    assert head.penalty().item() == pytest.approx(0.5)
    point = torch.zeros(2, requires_grad=True)
    distance(point, torch.zeros(2)).backward()
    assert point.grad is not None
    assert point.grad.tolist() == [0.0, 0.0]


def test_armorm() -> None:
    gate = tensor(2, 0, 1).div(10).softmax(-1)
    close(gate, [0.367165, 0.300610, 0.332225])
    penalty = tensor(0.1, 0.2, 0)
    good, bad = (gated(tensor(scores), gate, penalty, 2) for scores in ([0.8, 0.5, 0.3], [0.6, 0.7, 0.9]))
    close(good, [0.514653])
    close(bad, [0.642574])
    close(ArmoRM()(scored(good, bad)).loss, [0.759152])


def test_only_the_gate_of_armorm_learns() -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    head = GatedScore(weights, torch.tensor([0.1, 0.2, 0.0]), verbose=2, width=8)
    states, prompts = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    head(states, prompts).sum().backward()
    assert states.grad is None
    assert prompts.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert {name for name, _ in head.named_parameters()}.isdisjoint({"weights", "penalty"})
    plain = GatedScore(weights, torch.zeros(3), verbose=2, width=8)
    plain.load_state_dict({**head.state_dict(), "penalty": torch.zeros(3)})
    assert not torch.allclose(head(states, prompts), plain(states, prompts)), (
        "trained with the penalty, unlike released"
    )


def test_ridge_skips_missing_labels() -> None:
    states = tensor([1, 0], [0, 1], [1, 1])
    labels = tensor([2, math.nan], [3, math.nan], [math.nan, math.nan])
    weights = ridge(states, labels, 1e-9)
    close(weights, [[2.0, 3.0], [0.0, 0.0]])


def test_the_first_stage_finds_the_attributes() -> None:
    """The penalty that predicts held-out rows best: little where states tell the labels, much where they are noise."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(60, 6, generator=generator)
    truth = torch.randn(3, 6, generator=generator)
    labels = states @ truth.T
    labels[::7, 1] = math.nan
    weights, penalty = fitted(states, labels, 2)
    torch.testing.assert_close(weights, truth, rtol=1e-3, atol=1e-3)
    assert weights.dtype == penalty.dtype == torch.float32
    assert penalty[2] == 0
    states, noise = torch.randn(30, 20, generator=generator), torch.randn(30, 3, generator=generator)
    assert fitted(states, noise, 2)[0].norm() < 0.5 * ridge(states, noise, 1e-4).norm()


def test_verbosity_is_taken_out() -> None:
    generator = torch.Generator().manual_seed(1)
    length = torch.rand(200, generator=generator)
    honest = torch.rand(200, generator=generator)
    scores = torch.stack((honest + 0.5 * length, honest, length), -1)
    grid = torch.linspace(0, 1, 21)
    found = verbosity_penalty(scores, 2, grid)
    assert found[0] > 0.3
    assert found[2] == 0
    assert spearman(scores[:, 0] - found[0] * length, length) <= 0.03
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 2, 3])) == pytest.approx(1.0)


def test_helpsteer() -> None:
    inputs = scored(tensor([3.2, 3.5, 3.8, 1.5, 1.2]), tensor([0, 0, 0, 0, 0]), attributes=tensor([4, 4, 4, 2, 1]))
    output = HelpSteer()(inputs)
    close(output.loss, [0.244])
    close(output.metrics["overall"], [6.59])
    close(helpsteer_score(tensor([3.2, 3.5, 3.8, 1.5, 1.2])), [6.59])
    labels = tensor([4, math.nan, 1], [2, 3, math.nan])
    masked = scored(tensor([3, 2, 1], [2, 4, 0]), tensor([0, 0, 0], [0, 0, 0]), attributes=labels)
    masked.chosen.scores.requires_grad_()
    output = HelpSteer()(masked)
    assert output.loss.mean().item() == pytest.approx(0.5)
    output.loss.sum().backward()
    assert masked.chosen.scores.grad is not None
    assert masked.chosen.scores.grad.isfinite().all()


def test_regret() -> None:
    close(Regret()(scored(tensor(0.2, 1), tensor(0.9, 0.4))).loss, [0.403186, 1.037488])


def test_heads_have_a_name() -> None:
    assert set(HEADS) == {"scalar", "attributes", "degree", "gated", "ideal_point"}
    assert AttributeHead(4, 5)(torch.zeros(2, 4)).shape == (2, 5)
    assert ScalarHead(4)(torch.zeros(2, 3, 4)).shape == (2, 3)
