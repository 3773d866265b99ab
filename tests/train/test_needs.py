"""What pairs and trainer give to objectives, and the one line for what they do not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmalign.errors import TrainError
from mmalign.methods import find_method
from mmalign.objectives import OBJECTIVES, LossInputs, LossOutput, Need, Objective, Sum
from mmalign.objectives.carried import SIDES, VALUES, example
from mmalign.objectives.needs import AXES, axes, refuse_unmet
from mmalign.pairs import PairRow
from mmalign.sides import read_sides, read_values, shape_of
from mmalign.train.config import TrainConfig
from mmalign.train.data.derived import IMPROVE, with_derived
from mmalign.train.data.needs import prepared, promised, provided
from tests.train.rows import make_rows
from tests.train.sides import carrying

ONE, TWO = {"text": "Yes."}, {"text": "No."}


def rows(count: int = 3) -> list[PairRow]:
    return make_rows(Path(), count, pictures=0)


def objective(name: str, **settings: Any) -> Objective:
    return OBJECTIVES[name](**settings)


def refused(rows: list[PairRow], wanted: Objective, config: TrainConfig | None = None) -> str:
    with pytest.raises(TrainError) as caught:
        prepared(rows, wanted, config or TrainConfig())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_example(row: PairRow, wanted: Objective) -> PairRow:
    """The row with what the example of an objective carries."""
    shown = example(wanted)
    return replace(
        row,
        chosen=shown["chosen"],
        rejected=shown["rejected"],
        gap=shown.get("gap"),
        sides=read_sides(shown.get("sides", {})),
        values=read_values(shown.get("values", {})),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_example_of_every_objective_is_enough(name: str) -> None:
    wanted = objective(name)
    known = [with_example(row, wanted) for row in rows()]
    columns = {need for need in wanted.needs if need.partition(":")[0] in ("side", "value")}
    assert columns <= provided(known, TrainConfig())
    others = set(wanted.needs) - columns - provided(known, TrainConfig())
    if not others:
        assert prepared(known, wanted, TrainConfig()) == known


def test_every_known_name_has_axes() -> None:
    for kind, known in (("side", SIDES), ("value", VALUES)):
        for name, (_, shown) in known.items():
            found = axes(f"{kind}:{name}")
            read = {"side": read_sides, "value": read_values}[kind]({name: shown}) if name != "gap" else {"gap": 1.0}
            assert found is not None, name
            assert len(shape_of([read[name]])) == len(found.rstrip("?")), name
    assert {need.partition(":")[2] for need in AXES} <= {*SIDES, *VALUES}
    assert axes("side:answers", objective("sami")) == "NN"
    assert axes("value:own") is None


def test_what_no_pair_has_is_refused_with_its_meaning() -> None:
    told = refused(rows(), objective("lipo"))
    assert "objective lipo needs what these pairs and this trainer do not give" in told
    assert "side:answers (one more completion per pair" in told
    assert provided([], TrainConfig()) == provided(rows(), TrainConfig())


def test_the_first_pair_that_lacks_a_column_is_named() -> None:
    first, second, third = rows()
    full = [carrying(row, {"gold": ONE}) for row in (first, second, third)]
    assert prepared(full, objective("tpo"), TrainConfig()) == full
    told = refused([full[0], second, third], objective("tpo"))
    assert told.startswith("pair s1#0.0 (row 1) has no sides.gold, which objective tpo needs (one more completion")
    assert told.endswith("1 of the 3 pairs have it")
    told = refused([replace(first, gap=1.0), replace(second, gap=0.5), third], objective("mm_dpo"))
    assert told.startswith("pair s2#0.0 (row 2) has no gap, which objective mm_dpo needs")


@pytest.mark.parametrize(
    ("name", "sides", "values", "told"),
    [
        ("lipo", {"answers": ONE}, {"scores": [1]}, "sides.answers is one answer; it must be a list of answers"),
        ("lipo", {"answers": [ONE, TWO]}, {"scores": 1}, "values.scores is a number; it must be a list of numbers"),
        (
            "lipo",
            {"answers": [ONE, TWO]},
            {"scores": [1, 2, 3]},
            "values.scores has 3 entries, sides.answers has 2; they must have as many",
        ),
        ("lipo", {"answers": [ONE, None]}, {"scores": [1, 2]}, "sides.answers has a null"),
        ("lipo", {"answers": [ONE, TWO]}, {"scores": [1, None]}, "values.scores has a null"),
        ("lipo", {"answers": None}, {"scores": [1]}, "sides.answers is one answer; it must be a list"),
        ("tpo", {"gold": None}, {}, "sides.gold has a null"),
        ("tpo", {"gold": [ONE]}, {}, "sides.gold is a list of answers; it must be one answer"),
        ("sppo", {}, {"chosen_win_rate": [0.5], "rejected_win_rate": 0.1}, "values.chosen_win_rate is a list of numb"),
        ("sami", {"answers": [ONE, TWO]}, {}, "sides.answers is a list of answers; it must be a list of lists of ans"),
        ("sami", {"answers": [[ONE, TWO]]}, {}, "sides.answers has 2 entries, that of pair s0#0.0 has 1"),
        ("sami", {"answers": [[ONE, TWO], [ONE]]}, {}, "sides.answers has a null, or lists of different lengths"),
    ],
)
def test_wrong_shapes_are_named(name: str, sides: dict[str, Any], values: dict[str, Any], told: str) -> None:
    row = carrying(rows(1)[0], sides, values)
    found = refused([row], objective(name))
    assert found.startswith(f"pair s0#0.0 (row 0): {told}"), found
    assert found.endswith(f"for objective {name}")


def test_verdicts_are_two() -> None:
    sides = {"verdict_chosen": [ONE, TWO], "verdict_rejected": [TWO, ONE, ONE]}
    assert "sides.verdict_rejected has 3 entries; it must have 2" in refused(
        [carrying(rows(1)[0], sides)], objective("scir")
    )


def test_lists_may_differ_between_pairs_but_not_in_groups() -> None:
    first, second, _ = rows()
    ragged = [
        carrying(first, {"answers": [ONE, TWO]}, {"scores": [1, 0], "rewards": [1, 0]}),
        carrying(second, {"answers": [ONE]}, {"scores": [1], "rewards": [1]}),
    ]
    assert prepared(ragged, objective("lipo"), TrainConfig()) == ragged
    for wanted in (objective("grpo"), Sum(terms=({"name": "lipo"}, {"name": "grpo"}))):
        told = refused(ragged, wanted)
        assert "pair s1#0.0 (row 1): sides.answers has 1 entries, that of pair s0#0.0 has 2" in told


def test_teachers_may_be_missing_but_are_as_many_for_all() -> None:
    first, second, _ = rows()
    known = [carrying(first, {}, {"teacher_means": [-1, None]}), carrying(second, {}, {"teacher_means": [None, -2]})]
    assert prepared(known, objective("poft"), TrainConfig()) == known
    shorter = carrying(second, {}, {"teacher_means": [-1]})
    assert "values.teacher_means has 1 entries, that of pair s0#0.0 has 2" in refused(
        [known[0], shorter], objective("poft")
    )


def test_some_sides_a_pair_may_lack() -> None:
    first, second, _ = rows()
    known = [carrying(first, {"chosen_damaged": ONE}), carrying(second, {"chosen_damaged": None})]
    assert prepared(known, objective("mdpo"), TrainConfig()) == known


@dataclass(frozen=True)
class Own:
    """An objective with names of its own."""

    name: ClassVar[str] = "own"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "side:mine", "value:mine"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        raise NotImplementedError


def test_names_of_the_users_own_must_have_one_form() -> None:
    first, second, third = rows()
    known = [
        carrying(first, {"mine": None}, {"mine": [1, 2]}),
        carrying(second, {"mine": [ONE]}, {"mine": [1]}),
        carrying(third, {"mine": [ONE, TWO]}, {"mine": None}),
    ]
    assert prepared(known, Own(), TrainConfig()) == known
    told = refused([*known, carrying(first, {"mine": ONE}, {"mine": [1]})], Own())
    assert "(row 3): sides.mine is one answer, before it was a list of answers" in told


def test_kto_takes_answers_to_other_prompts_by_turns() -> None:
    first, second, third = rows()
    made = with_derived([first, second, third], objective("kto"))
    assert [row.sides["mismatched"].text for row in made] == [second.chosen, third.rejected, first.chosen]  # type: ignore[union-attr]
    same = replace(second, context=first.context)
    own = carrying(same, {"mismatched": ONE})
    made = with_derived([first, own, third], objective("kto"))
    assert made[0].sides["mismatched"].text == third.chosen, "the next pair is about the same prompt"  # type: ignore[union-attr]
    assert made[1] is own
    with pytest.raises(TrainError, match=r"pair s0#0\.0: all pairs have one prompt"):
        with_derived([first, same], objective("kto"))


def test_srpo_shows_one_answer_and_asks_for_a_better_one() -> None:
    row = rows(1)[0]
    made = prepared([row], objective("srpo"), TrainConfig())[0]
    assert len(made.sides) == 4
    side: Any = made.sides["chosen_after_rejected"]
    assert side.text == row.chosen
    assert [turn["role"] for turn in side.context] == ["user", "assistant", "user"]
    assert side.context[0] == row.context[0]
    assert side.context[1]["content"] == [{"type": "text", "text": row.rejected}]
    assert side.context[2]["content"] == [{"type": "text", "text": IMPROVE}]
    begun = replace(row, context=[*row.context, {"role": "assistant", "content": []}])
    assert "has no sides.chosen_after_chosen" in refused([row, begun], objective("srpo"))
    assert "side:chosen_after_rejected" in promised(find_method("stic")(), TrainConfig())


def test_other_derived_sides() -> None:
    row = replace(rows(1)[0], rejected_context=[{"role": "user", "content": []}])
    views = with_derived([row], objective("strength_rm", contrast=0.1, mode="smoothing"))[0].sides
    assert views == {"chosen_view": row.side("chosen"), "rejected_view": row.side("rejected")}
    made = with_derived([carrying(row, {"answers": [ONE, TWO]})], objective("sar"))[0]
    told: Any = made.sides["answers_alone"]
    assert [answer.text for answer in told] == ["Yes.", "No."]
    assert {answer.context[0]["content"][0]["text"] for answer in told} == {""}
    assert with_derived([row], objective("sar")) == [row]


def test_before_there_are_pairs_a_method_says_what_it_can_give() -> None:
    config = TrainConfig()
    plain, scored = find_method("stic")(), find_method("self_consistency")()
    for name in ("dpo", "srpo", "kto"):
        assert {need for need in objective(name).needs if ":" in need} <= promised(plain, config)
    refuse_unmet(objective("mm_dpo"), promised(scored, config))
    for name in ("mm_dpo", "lipo", "mdpo", "sar"):
        with pytest.raises(ValueError, match=re.escape(f"objective {name} needs what these pairs")):
            refuse_unmet(objective(name), promised(plain, config))
