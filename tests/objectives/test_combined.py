"""Sums of objectives, objectives of a user's own, and how recipes name them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmalign.cli import listing
from mmalign.errors import RecipeError
from mmalign.methods import find_method
from mmalign.objectives import (
    DPO,
    OBJECTIVES,
    RRPO,
    SFT,
    LossInputs,
    LossOutput,
    Need,
    Objective,
    Sum,
    TokenTerm,
    find_objective,
)
from mmalign.objectives.distill import DCKD
from mmalign.objectives.needs import KINDS, WORDS
from mmalign.objectives.noisy import LCPO
from mmalign.recipe.load import load_recipe
from mmalign.train.config import TrainConfig
from mmalign.train.data.needs import promised
from tests.objectives.fixtures import close, f1
from tests.objectives.rooms import room


def test_a_sum_is_the_weighted_sum() -> None:
    total = Sum(terms=({"name": "dpo", "weight": 0.8, "beta": 0.3}, {"name": "hinge", "weight": -0.5}, {"name": "sft"}))
    output = total(f1())
    parts = [DPO(beta=0.3)(f1()), find_objective("hinge")()(f1()), SFT()(f1())]
    torch.testing.assert_close(output.loss, 0.8 * parts[0].loss - 0.5 * parts[1].loss)
    torch.testing.assert_close(output.pooled["chosen"], parts[2].pooled["chosen"])
    assert total.needs == {"chosen", "rejected", "reference"}
    close(output.metrics["margin"], [0.6, -0.45])
    close(output.metrics["hinge/margin"], [0.2, -0.15])
    close(output.metrics["nll"], [3.0, 2.5])
    torch.testing.assert_close(output.metrics["hinge/loss"], parts[1].loss)
    twice = Sum(terms=({"name": "dpo"}, {"name": "dpo", "beta": 0.2}))(f1()).metrics
    assert {"margin", "dpo_2/margin", "dpo_1/loss"} <= set(twice)
    assert "dpo_2/chosen_logps" not in twice


def test_a_sum_needs_what_its_parts_need() -> None:
    total = Sum.of((1.0, RRPO(beta=0.1)), (0.5, DCKD(chosen_weight=2.0)))
    assert total.needs == RRPO().needs | DCKD().needs
    assert [part for _, part in total.parts] == [RRPO(beta=0.1), DCKD(chosen_weight=2.0)]
    assert set(total.token_terms) == {"chosen", "rejected"}
    assert total.token_terms["chosen"].sources == ("teacher",)


def test_two_terms_of_one_side_are_computed_together() -> None:
    total = Sum(terms=({"name": "wpo"}, {"name": "dckd"}))
    made = room(total, 0)
    assert set(made.inputs.chosen.terms) == {"0.log_agreement", "1.kl"}
    expected = OBJECTIVES["wpo"]()(_with_terms_of(made.inputs, 0)).loss + DCKD()(_with_terms_of(made.inputs, 1)).loss
    torch.testing.assert_close(total(made.inputs).loss, expected)
    assert isinstance(total.token_terms["chosen"], TokenTerm)


def test_terms_of_the_same_name_stay_apart() -> None:
    """The same objective twice, with other parameters: each part reads what its own gave."""
    total = Sum(terms=({"name": "adpa"}, {"name": "adpa", "clip": 0.1, "weight": 0.5}))
    inputs = room(total, 0).inputs
    first, second = (part(_with_terms_of(inputs, index)) for index, (_, part) in enumerate(total.parts))
    assert not torch.allclose(first.pooled["sample"], second.pooled["sample"])
    output = total(inputs)
    torch.testing.assert_close(output.pooled["sample"], first.pooled["sample"] + 0.5 * second.pooled["sample"])
    torch.testing.assert_close(output.metrics["advantage"], first.metrics["advantage"])
    torch.testing.assert_close(output.metrics["adpa_2/advantage"], second.metrics["advantage"])


def _with_terms_of(inputs: LossInputs, index: int) -> LossInputs:
    place = f"{index}."
    sides = {
        name: replace(
            side,
            terms={key.removeprefix(place): value for key, value in side.terms.items() if key.startswith(place)},
        )
        for name, side in inputs.sides.items()
    }
    return replace(inputs, sides=sides)


def test_parts_keep_their_own_memories() -> None:
    total = Sum(terms=({"name": "lcpo", "reliability": 0.7}, {"name": "dpo"}, {"name": "lcpo"}))
    memory = total.start_memory()
    assert {key: value.tolist() for key, value in memory.items()} == {
        "0.reliability": pytest.approx([0.7]),
        "2.reliability": pytest.approx([0.9]),
    }
    output = total(replace(f1(), memory=memory))
    after = total.remember(memory, output.seen)
    alone = LCPO(reliability=0.7)
    single = alone(replace(f1(), memory=alone.start_memory()))
    torch.testing.assert_close(after["0.reliability"], alone.remember(alone.start_memory(), single.seen)["reliability"])
    assert after["2.reliability"].item() != after["0.reliability"].item()


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ((), "terms is empty"),
        (({"weight": 1},), "terms.0 is .*; it must be a mapping with the name"),
        (("dpo",), "terms.0 is 'dpo'"),
        (({"name": "dop"},), "terms.0.name: no objective is called 'dop'; did you mean 'dpo'"),
        (({"name": "dpo"}, {"name": "sft", "beta": 1}), "terms.1.beta: sft has no such parameter; it has none"),
        (({"name": "dpo", "beta": -1},), "terms.0.beta is -1; it must be more than 0"),
        (({"name": "dpo", "beta": "much"},), "terms.0.beta is 'much'; it must be a number"),
        (({"name": "dpo", "weight": "half"},), "terms.0.weight is 'half'; it must be a number"),
        (({"name": "ipo", "weight": True},), "terms.0.weight is True"),
        (({"name": "pal"}, {"name": "pal", "dimension": 8}), "terms.1: dimension is 8, in a term before it 512"),
    ],
)
def test_wrong_terms_are_named(terms: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sum(terms=terms)


def test_the_multimodal_mix() -> None:
    mixed = find_objective("mpo")()
    assert [(weight, part.name) for weight, part in mixed.parts] == [(0.8, "dpo"), (0.2, "bco_pair"), (1.0, "sft")]  # type: ignore[attr-defined]
    output = mixed(f1())
    expected = 0.8 * 0.684548 + 0.2 * 1.375825 + 2.666667
    assert output.loss.mean().item() + output.pooled["chosen"].sum().item() / 12 == pytest.approx(expected, abs=2e-6)


OWN = '''
from dataclasses import dataclass
from typing import ClassVar

from mmalign.objectives import LossInputs, LossOutput


@dataclass(frozen=True, kw_only=True)
class Longest:
    """Minus the number of tokens.

    Args:
        scale: What it is multiplied by.
    """

    name: ClassVar[str] = "longest"
    scale: float = 2.0

    @property
    def needs(self):
        return frozenset(("chosen",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        return LossOutput(loss=-self.scale * inputs.chosen.mask.sum(-1).double())


class Bare:
    pass


@dataclass(frozen=True)
class Silent:
    name: ClassVar[str] = "silent"
'''


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Nothing to learn.

    Args:
        value: The loss.
    """

    name: ClassVar[str] = "constant"
    value: float = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        return LossOutput(loss=torch.full((inputs.p.shape[0],), self.value))


def test_own_objectives(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN, encoding="utf-8")
    kind: Any = find_objective(f"{path}:Longest")
    objective = kind(scale=3.0)
    assert isinstance(objective, Objective)
    assert objective(f1()).loss.tolist() == [-12.0, -24.0]
    assert find_objective(f"{path}:Longest") is kind
    total = Sum(terms=({"name": f"{path}:Longest", "weight": 0.5}, {"name": "dpo"}))
    close(total(f1()).loss, [-3.401861, -7.229043])
    assert find_objective("mmalign.objectives.dpo:DPO") is DPO
    with pytest.raises(LookupError, match="there is no class 'Shortest' there"):
        find_objective(f"{path}:Shortest")
    with pytest.raises(LookupError, match="the class is no dataclass"):
        find_objective(f"{path}:Bare")
    with pytest.raises(LookupError, match="the class has no needs"):
        find_objective(f"{path}:Silent")
    with pytest.raises(LookupError, match="cannot be read"):
        find_objective(f"{tmp_path}/absent.py:Longest")
    with pytest.raises(LookupError, match=r"give package\.module:Class or file\.py:Class"):
        find_objective("mmalign.absent:Longest")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(LookupError, match=r"broken.py: ZeroDivisionError"):
        find_objective(f"{broken}:Longest")


def test_a_sum_of_ready_made_objectives_finds_them_again() -> None:
    sys.modules.setdefault(__name__, sys.modules[Constant.__module__])
    total = Sum.of((2.0, Constant(value=3.0)), (1.0, SFT()))
    assert total(f1()).loss.tolist() == [6.0, 6.0]


def test_recipes_name_objectives(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN, encoding="utf-8")
    path = tmp_path / "recipe.yaml"

    def loaded(objective: str, *flags: str) -> Objective:
        path.write_text(f"method: {{name: stic}}\ndata: {{scenes: 1}}\nobjective: {objective}\n", encoding="utf-8")
        return load_recipe(path, flags).objective

    assert loaded("{name: rrpo, beta: 0.5, alpha: 0.05}") == RRPO(beta=0.5, alpha=0.05)
    assert loaded("{name: f_dpo, divergence: forward_kl}") == OBJECTIVES["f_dpo"](divergence="forward_kl")
    mixed = loaded("{name: sum, terms: [{name: dpo, weight: 0.8, beta: 0.3}, {name: sft}]}")
    assert mixed == Sum(terms=({"name": "dpo", "weight": 0.8, "beta": 0.3}, {"name": "sft"}))
    assert loaded(f"{{name: '{own}:Longest', scale: 4}}").scale == 4.0  # type: ignore[attr-defined]
    flagged = loaded("{name: sum}", "--objective.terms", "[{name: ipo, weight: 2}]")
    assert flagged == Sum(terms=({"name": "ipo", "weight": 2},))
    for wrong, words in (
        ("{name: sum, terms: [{name: dop}]}", "objective.terms.0.name: no objective is called 'dop'"),
        ("{name: sum, terms: []}", "objective.terms is empty"),
        ("{name: sum, terms: 3}", "objective.terms"),
        ("{name: f_dpo, divergence: kl}", "objective.divergence"),
        (f"{{name: '{own}:Bare'}}", "objective.name: .*no dataclass"),
    ):
        with pytest.raises(RecipeError, match=words):
            loaded(wrong)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_named_in_a_recipe_is_built_or_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: {{name: stic}}\ndata: {{scenes: 1}}\nobjective: {{name: {name}}}\n", encoding="utf-8")
    objective = OBJECTIVES[name]()
    if objective.needs <= promised(find_method("stic")(), TrainConfig()):
        assert load_recipe(path).objective == objective
    else:
        with pytest.raises(RecipeError, match=f"objective {name} needs what these pairs and this trainer do not give"):
            load_recipe(path)


def test_the_list_shows_formula_needs_and_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    listing.main("objectives")
    shown = capsys.readouterr().out
    assert "softCE(beta D, q) - sft_weight L(y_w)" in shown
    assert "needs chosen, reference, reference:chosen_damaged, rejected, side:chosen_damaged" in shown
    assert "arXiv 2405.14734" in shown
    assert "[(L_w/n_w - F_w) - (L_l/n_l - F_l)]" in shown, "brackets are no markup"
    assert "s = log sigmoid" in shown
    assert all(name in shown for name in OBJECTIVES)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def test_the_page_names_them_all() -> None:
    page = PAGE.read_text(encoding="utf-8")
    absent = [name for name in OBJECTIVES if f"`{name}`" not in page]
    assert not absent
    assert all(f"`{word}`" in page for word in WORDS)
    assert all(f"`{kind}:" in page for kind in KINDS)


def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    path = tmp_path / "my_losses.py"
    path.write_text(example, encoding="utf-8")
    close(find_objective(f"{path}:Cautious")()(f1()).loss, [0.0, 3.0])
