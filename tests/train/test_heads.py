"""Heads of reward models on their own: which one a run needs, what it says, and that nothing of it is lost on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.objectives import DPO, Completions, LossInputs, Objective, Sum
from mmalign.objectives.heads import gated
from mmalign.objectives.internal import PreferenceDegree
from mmalign.objectives.reward import PAL, ArmoRM, BradleyTerry, HelpSteer
from mmalign.pairs import PairRow
from mmalign.train.reward.heads import HeadSpec, RewardHead, load_head

CPU, SIZE = torch.device("cpu"), 6
SPECS = {
    "scalar": {"size": SIZE},
    "attributes": {"size": SIZE, "count": 3},
    "degree": {"size": SIZE, "count": 4},
    "gated": {"size": SIZE, "count": 3, "verbose": -1, "width": 5, "temperature": 10.0},
    "ideal_point": {"size": SIZE, "users": 2, "prototypes": 3, "dimension": 4, "squared": True, "bound": 2.0},
}


def pair(**values: Any) -> PairRow:
    return PairRow(id="p", sample_id="p", method="test", context=[], chosen="a", rejected="b", values=values, sides={})


def states(**sides: Tensor) -> LossInputs:
    """Sides with these states, two pairs."""
    made = {
        name: Completions(
            token_logps=torch.zeros(*state.shape[:-1], 1), mask=torch.ones(*state.shape[:-1], 1).bool(), state=state
        )
        for name, state in sides.items()
    }
    return LossInputs(sides=made, p=torch.ones(2), values={"user": torch.tensor([1.0, 0.0])})


def made(name: str, seed: int = 0) -> RewardHead:
    torch.manual_seed(seed)
    head = RewardHead(HeadSpec(name, SPECS[name]), CPU)
    if name == "ideal_point":
        torch.nn.init.normal_(head.module.get_parameter("users"))
    return head


def two_steps(head: RewardHead, seed: int) -> list[float]:
    """Train on random states."""
    norms = []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        state, prompt = torch.randn(2, 2, SIZE, generator=generator)
        inputs = head.scored(states(chosen=state), {"chosen": prompt})
        inputs.chosen.scores.square().sum().backward()
        norms.append(head.step(0.1, 1.0, lambda value: value))
    return norms


@pytest.mark.parametrize(
    ("objective", "values", "expected"),
    [
        (BradleyTerry(), {}, HeadSpec("scalar", {"size": SIZE})),
        (Sum.of((1.0, BradleyTerry()), (0.1, DPO())), {}, HeadSpec("scalar", {"size": SIZE})),
        (HelpSteer(), {"attributes": (1.0, None, 2.0)}, HeadSpec("attributes", {"size": SIZE, "count": 3})),
        (PreferenceDegree(), {"degrees": (0.0, 2.0, 1.0)}, HeadSpec("degree", {"size": SIZE, "count": 3})),
        (ArmoRM(width=5), {"attributes": (1.0, 2.0, 3.0)}, HeadSpec("gated", SPECS["gated"])),
        (
            PAL(prototypes=3, dimension=4, squared=True, bound=2.0),
            {"user": 1.0},
            HeadSpec("ideal_point", SPECS["ideal_point"]),
        ),
    ],
)
def test_sizes_come_from_objective_and_pairs(objective: Objective, values: Any, expected: HeadSpec) -> None:
    rows = [pair(**values), pair(**{name: 0.0 if value == 1.0 else value for name, value in values.items()})]
    assert HeadSpec.of(objective, rows, SIZE) == expected
    assert RewardHead(expected, CPU).spec == expected


def test_no_head_and_two_heads() -> None:
    assert HeadSpec.of(DPO(), [pair()], SIZE) is None
    both = Sum.of((1.0, BradleyTerry()), (1.0, HelpSteer()))
    with pytest.raises(TrainError, match="needs the heads attributes, scalar; a run trains one of"):
        HeadSpec.of(both, [pair()], SIZE)


@pytest.mark.parametrize("name", SPECS)
def test_a_head_comes_back_from_a_checkpoint_and_from_disk(name: str, tmp_path: Path) -> None:
    head, other = made(name), made(name, 1)
    two_steps(head, 0)
    other.load(head.state())
    assert two_steps(other, 1) == two_steps(head, 1)
    assert all(torch.equal(value, other.state()[key]) for key, value in head.state().items())
    head.save(tmp_path)
    spec, loaded = load_head(tmp_path)
    assert spec == head.spec
    assert not loaded.training
    for key, value in head.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_folder_without_a_head(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"holds no head\.json, so no reward head"):
        load_head(tmp_path)


def test_the_file_is_plain(tmp_path: Path) -> None:
    made("ideal_point").save(tmp_path)
    told = json.loads((tmp_path / "head.json").read_text())
    assert told == {"name": "ideal_point", "settings": SPECS["ideal_point"]}


def test_every_pair_has_the_score_of_its_own_user() -> None:
    head = made("ideal_point")
    single, listed = torch.randn(2, SIZE), torch.randn(2, 3, SIZE)
    found = head.scored(states(chosen=single, answers=listed), {})
    for row, user in enumerate((1, 0)):
        assert torch.equal(found.chosen.scores[row], head.module(single[row], torch.tensor(user)))
        expected = torch.stack([head.module(state, torch.tensor(user)) for state in listed[row]])
        torch.testing.assert_close(found.side("answers").scores[row], expected)
    assert found.side("answers").scores.shape == (2, 3)


def test_a_gate_reads_the_prompt() -> None:
    head = made("gated")
    assert head.spec.build().verbose == 2  # the last of three
    head.module.load_state_dict({**head.module.state_dict(), "weights": torch.randn(3, SIZE)})
    state, prompts = torch.randn(2, SIZE), torch.randn(2, SIZE)
    found = head.scored(states(chosen=state), {"chosen": prompts}).chosen.scores
    gate: Any = head.module.gate
    weights = head.module.get_buffer("weights")
    expected = gated(state @ weights.T, (gate(prompts) / 10).softmax(-1), torch.zeros(3), 2)
    torch.testing.assert_close(found, expected)


def test_gradients_are_averaged_clipped_and_cleared() -> None:
    head, norms = made("scalar"), []
    before = head.module.state_dict()["linear.weight"].clone()
    head.scored(states(chosen=torch.ones(2, SIZE)), {}).chosen.scores.sum().backward()

    def halved(value: Tensor) -> Tensor:
        norms.append(float(value.norm()))
        return value / 2

    norm = head.step(0.1, 0.5, halved)
    assert norm == pytest.approx(norms[0] / 2)
    assert norm == pytest.approx(SIZE**0.5)
    torch.testing.assert_close(before - head.module.state_dict()["linear.weight"], torch.full((1, SIZE), 0.1))
    assert head.state()["optimizer.linear.weight:exp_avg"].norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)
    assert head.module.get_parameter("linear.weight").grad is None


def test_a_norm_that_is_no_number_changes_nothing() -> None:
    head = made("scalar")
    before = head.module.state_dict()["linear.weight"].clone()
    (head.scored(states(chosen=torch.ones(2, SIZE)), {}).chosen.scores.sum() * torch.inf).backward()
    assert head.step(0.1, 1.0, lambda value: value) == torch.inf
    assert torch.equal(head.module.state_dict()["linear.weight"], before)


def test_only_an_ideal_point_fines_itself() -> None:
    assert made("scalar").penalty() is None
    head = made("ideal_point")
    torch.nn.init.constant_(head.module.get_parameter("prototypes"), 2.0)
    fine = head.penalty()
    assert fine is not None
    assert fine.item() == pytest.approx(3 * (4.0 - 2.0))
