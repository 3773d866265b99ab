"""What holds of every objective: it needs what it reads, its gradients are right, extremes are finite."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mmalign.objectives import OBJECTIVES, LossInputs, Objective, Remembering, describe_objective, refuse_unmet
from mmalign.objectives.needs import meaning
from mmalign.objectives.noisy import Selfie
from mmalign.objectives.pairwise import FDPO
from mmalign.objectives.policy import P3O, SAR, SCoRe
from mmalign.objectives.reward import BradleyTerry, StrengthRM
from mmalign.objectives.tokens import WPO
from tests.objectives.rooms import SIZE, reordered, room

EVERY: list[Objective] = [
    *(kind() for kind in OBJECTIVES.values()),
    FDPO(divergence="forward_kl"),
    FDPO(divergence="alpha"),
    Selfie(extrapolation=1.0),
    P3O(form="separate"),
    SCoRe(stage=1),
    StrengthRM(mode="flip", contrast=1.0),
]
#: Their weight depends on what learns, and is held; the gradient is checked beside an oracle of its own.
HELD = {"lcpo", "wpo", "knowpat", "more"}
#: With what depends on the policy and is held taken out.
BARE = {"p3o": P3O(beta=0.0), "score": SCoRe(kl=0.0, first_kl=0.0), "sar": SAR(alpha=0.0)}


def named(objective: Objective) -> str:
    return repr(objective)[:60]


def total(objective: Objective, inputs: LossInputs) -> Tensor:
    """All that is minimised, per pair."""
    output = objective(inputs)
    return output.loss + sum(output.pooled.values(), torch.zeros_like(output.loss))


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_it_runs_on_what_it_needs(objective: Objective) -> None:
    for need in objective.needs:
        assert meaning(need)
    inputs = room(objective, 0).inputs
    output = objective(inputs)
    assert isinstance(objective, Objective)
    assert output.loss.shape == (SIZE,)
    assert output.loss.dtype == torch.float64
    assert set(output.pooled) <= set(inputs.sides)
    for values in output.pooled.values():
        assert values.shape == (SIZE,)
    assert output.metrics
    for name, values in output.metrics.items():
        assert values.shape == (SIZE,), name
        assert not values.requires_grad, name
        assert values.isfinite().all(), name
    for name, values in output.seen.items():
        assert values.shape[0] == SIZE, name
        assert not values.requires_grad, name


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_it_names_what_is_absent(objective: Objective) -> None:
    """Without any one of the things that it needs it says so in one line, and reads nothing else."""
    inputs = room(objective, 0).inputs
    for name in inputs.values:
        if name == "user" or objective.name == "armorm":  # which its head reads
            continue
        less = replace(inputs, values={key: value for key, value in inputs.values.items() if key != name})
        with pytest.raises(ValueError, match=f"the value '{name}'.*'value:{name}'"):
            objective(less)
    if inputs.memory:
        with pytest.raises(ValueError, match=r"its memory of .*'memory'"):
            objective(replace(inputs, memory={}))
    for name in inputs.sides:
        less = replace(inputs, sides={key: value for key, value in inputs.sides.items() if key != name})
        with pytest.raises(ValueError, match=f"the side '{name}'"):
            objective(less)
    for name, one in inputs.sides.items():
        if one.reference_token_logps is not None:
            blind = replace(inputs, sides={**inputs.sides, name: replace(one, reference_token_logps=None)})
            with pytest.raises(ValueError, match="'reference'"):
                objective(blind)


@pytest.mark.parametrize("objective", [BARE.get(one.name, one) for one in EVERY if one.name not in HELD], ids=named)
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_match_finite_differences(objective: Objective, seed: int) -> None:
    made = room(objective, seed)
    total(objective, made.inputs).sum().backward()
    direction = [
        torch.randn(leaf.shape, dtype=leaf.dtype, generator=torch.Generator().manual_seed(9)) for leaf in made.learning
    ]
    slope = sum(
        float((leaf.grad * step).sum())
        for leaf, step in zip(made.learning, direction, strict=True)
        if leaf.grad is not None
    )
    if objective.name == "kto":  # its estimate of the divergence is held
        mismatched = [one.token_logps for name, one in made.inputs.sides.items() if name == "mismatched"]
        direction = [
            step * 0 if any(leaf is held for held in mismatched) else step
            for leaf, step in zip(made.learning, direction, strict=True)
        ]
    ends = []
    for change in (1e-6, -1e-6):  # distributions are streamed when the inputs are made
        with torch.no_grad():
            ends.append(float(total(objective, room(objective, seed, along=direction, by=change).inputs).sum()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_only_the_policy_learns(objective: Objective) -> None:
    made = room(objective, 3)
    total(objective, made.inputs).sum().backward()
    assert any(leaf.grad is not None and bool(leaf.grad.abs().sum() > 0) for leaf in made.learning)
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in made.fixed)
    for name, one in made.inputs.sides.items():
        if one.token_logps.is_leaf and one.token_logps.grad is not None:
            assert one.token_logps.grad[~one.mask].abs().sum() == 0, name


@pytest.mark.parametrize("objective", EVERY, ids=named)
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_extremes_are_finite(objective: Objective, size: float) -> None:
    made = room(objective, 4, dtype=torch.float32, size=size)
    value = total(objective, made.inputs)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    value.sum().backward()
    assert all(leaf.grad is None or bool(leaf.grad.isfinite().all()) for leaf in made.learning)


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_padding_and_order_change_nothing(objective: Objective) -> None:
    inputs = room(objective, 5).inputs
    order = torch.tensor([2, 0, 1])
    found, expected = total(objective, reordered(inputs, order, 3)), total(objective, inputs)
    torch.testing.assert_close(found, expected[order])


@pytest.mark.parametrize("objective", [one for one in EVERY if "memory" in one.needs], ids=named)
def test_memories_are_numbers_that_go_on(objective: Objective) -> None:
    assert isinstance(objective, Remembering)
    inputs = room(objective, 6).inputs
    memory: dict[str, Tensor] = objective.start_memory()
    for _ in range(3):
        memory = objective.remember(memory, objective(replace(inputs, memory=memory)).seen)
        assert all(value.isfinite().all() and not value.requires_grad for value in memory.values())
    assert total(objective, replace(inputs, memory=memory)).isfinite().all()


SWAPPED = (
    *("dpo", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop"),
    *("sigmoid_norm", "f_dpo", "ld_dpo", "kto", "simpo", "lcpo", "osp", "irepo", "wpo", "bradley_terry"),
    *("eurus", "pal"),
)


@pytest.mark.parametrize("name", SWAPPED)
def test_a_label_that_is_wrong_for_sure_is_the_swapped_pair(name: str) -> None:
    objective = OBJECTIVES[name]()
    inputs = room(objective, 8).inputs
    ends = {"chosen": inputs.rejected, "rejected": inputs.chosen}
    turned = replace(inputs, sides={**inputs.sides, **ends}, p=torch.ones(SIZE, dtype=torch.float64))
    wrong = replace(inputs, p=torch.zeros(SIZE, dtype=torch.float64))
    torch.testing.assert_close(objective(wrong).loss, objective(turned).loss)


def test_held_weights_only_scale_the_gradient() -> None:
    for objective, plain in ((WPO(), OBJECTIVES["dpo"]()), (OBJECTIVES["more"](), BradleyTerry())):
        found, expected = room(objective, 7), room(objective, 7)
        output = objective(found.inputs)
        output.loss.sum().backward()
        with torch.no_grad():
            weight = output.loss / plain(expected.inputs).loss
        (weight * plain(expected.inputs).loss).sum().backward()
        for one, other in zip(found.learning, expected.learning, strict=True):
            if other.grad is not None:
                torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_described(name: str) -> None:
    kind = OBJECTIVES[name]
    info = describe_objective(kind)
    assert info.name == name
    assert info.formula
    assert info.source
    assert info.summary.endswith(".")
    documented = " ".join(parent.__doc__ or "" for parent in kind.__mro__)
    for field in fields(kind):  # type: ignore[arg-type]
        assert not field.init or f"{field.name}:" in documented, field.name


def test_unmet_needs_are_refused_in_one_line() -> None:
    provided = {"chosen", "rejected", "reference", "value:gap"}
    refuse_unmet(OBJECTIVES["mm_dpo"](), provided)
    with pytest.raises(
        ValueError, match=r"objective mdpo needs what .*reference:chosen_damaged.*; side:chosen_damaged"
    ):
        refuse_unmet(OBJECTIVES["mdpo"](), provided)
    for need in ("colour", "side:", "shade:blue"):
        with pytest.raises(ValueError, match="is no need; known are chosen"):
            meaning(need)
