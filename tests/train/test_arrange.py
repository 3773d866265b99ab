"""Schedules over the table of pairs, with the oracles of the specification, and the order that parts twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import RecipeError, TrainError
from mmalign.pairs import PairRow
from mmalign.recipe.load import load_recipe
from mmalign.train.config import Arrangement
from mmalign.train.data.arrange import (
    GOAL,
    READS,
    arranged,
    curry,
    easy_pairs,
    hard_pairs,
    reward_augmented,
    staged_by_gap,
    temporal,
    twins_of,
)
from mmalign.train.schedule import Order
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.sides import asked, carrying


def rows(count: int = 2) -> list[PairRow]:
    return make_rows(Path(), count, pictures=0)


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def test_curry_trains_the_largest_gap_first() -> None:
    first, second = rows()
    made = curry(
        [
            carrying(first, {"answers": answers("a", "b", "c", "d")}, {"scores": [9, 7, 4, 2]}),
            carrying(second, {"answers": answers("e", "f", "g")}, {"scores": [1, 5, 5]}),
        ]
    )
    assert [(row.stage, row.chosen, row.rejected, row.gap) for row in made] == [
        (0, "a", "d", 7),
        (1, "a", "c", 5),
        (2, "a", "b", 2),
        (0, "f", "e", 4),
    ]
    assert [row.id for row in made] == ["s0#0.0/0", "s0#0.0/1", "s0#0.0/2", "s1#0.0/0"]
    assert all(not row.sides and not row.values for row in made)


def test_an_answer_keeps_its_context_and_spans() -> None:
    row = rows(1)[0]
    other = asked(row, "Is it?")
    told = [{"text": "a", "context": other, "spans": [[0, 1]]}, {"text": "b"}]
    made = curry([carrying(row, {"answers": told}, {"scores": [1, 0]})])[0]
    assert (made.context, made.rejected_context, made.chosen_spans) == (other, row.context, ((0, 1),))


def test_easy_to_hard_is_equal_shares_by_gap() -> None:
    gaps = [0.1, 3.0, 2.0, 0.5]
    made = staged_by_gap([replace(row, gap=gap) for row, gap in zip(rows(4), gaps, strict=True)], 2)
    assert [row.stage for row in made] == [1, 0, 0, 1]
    assert [row.gap for row in made] == gaps


def test_mpo_splits_by_the_median_gap() -> None:
    """The oracle: r_w [3, 1], r_l [.5, .8], gamma 1: easy [0], hard [1]."""
    known = [replace(row, gap=gap) for row, gap in zip(rows(), (3 - 0.5, 1 - 0.8), strict=True)]
    for least in (1.0, None):
        assert [row.id for row in easy_pairs(known, least)] == ["s0#0.0"]
        assert [row.id for row in hard_pairs(known, least)] == ["s1#0.0"]
    assert easy_pairs([replace(known[0], gap=-1.0)], least=-2) == []


def test_temporal_takes_the_past_and_the_future() -> None:
    """The oracle: s_i [6, 8, 7], s_0 [3, 5, 4], s_f [7, 9]."""
    row = rows(1)[0]
    sides = {"answers": answers("n0", "n1", "n2"), "first_answers": answers("p0", "p1", "p2")}
    scores = {"scores": [6, 8, 7], "first_scores": [3, 5, 4]}
    made = temporal([carrying(row, sides, scores)])
    assert [(one.chosen, one.rejected, one.gap) for one in made] == [("n1", "p0", 5)]
    later = {**sides, "next_answers": answers("f0", "f1")}
    made = temporal([carrying(row, later, {**scores, "next_scores": [7, 9]})])
    assert [(one.chosen, one.rejected, one.gap) for one in made] == [("f1", "p0", 6)]
    assert temporal([carrying(row, sides, {"scores": [1, 1, 1], "first_scores": [1, 1, 1]})]) == []


def test_reward_augmentation_makes_two_pairs_under_goals() -> None:
    """The oracle: r_w 8, r_l 5: rewards 0, -9 under both goals, with the answers turned under the lower one."""
    first, second = rows()
    system = [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, *second.context]
    known = [
        carrying(first, {}, {"chosen_reward": 8, "rejected_reward": 5}),
        replace(
            carrying(second, {}, {"chosen_reward": 2.5, "rejected_reward": 1}),
            context=system,
            rejected_context=asked(second, "Is it?"),
            chosen_spans=((0, 1),),
        ),
        carrying(first, {}, {"chosen_reward": 3, "rejected_reward": 3}),
    ]
    made = reward_augmented(known)
    assert len(made) == 4
    high, low = made[:2]
    assert (high.chosen, high.rejected, low.chosen, low.rejected) == (
        *[first.chosen, first.rejected] * 1,
        first.rejected,
        first.chosen,
    )
    for one, goal in ((high, 8), (low, 5)):
        assert one.context[0] == {"role": "system", "content": [{"type": "text", "text": GOAL.format(goal=goal)}]}
        assert one.context[1:] == first.context
        assert one.values == {"chosen_reward": 0, "rejected_reward": -9}
        assert one.gap == 9
    assert "8." in high.context[0]["content"][0]["text"], "an integral goal is printed as an integer"
    other = made[3]
    assert [part["text"] for part in made[2].context[0]["content"]] == ["Be kind.", f"\n{GOAL.format(goal=2.5)}"]
    assert other.context[0]["content"][0]["text"] == GOAL.format(goal=1)
    assert other.context[1:] == asked(second, "Is it?"), "the turned pair's chosen text is the rejected one"
    assert other.rejected_context is not None
    assert other.rejected_context[1:] == second.context
    assert other.rejected_context[0]["content"][-1]["text"] == f"\n{GOAL.format(goal=1)}"
    assert other.rejected_spans == ((0, 1),)
    assert twins_of(made) == ["s0#0.0", "s0#0.0", "s1#0.0", "s1#0.0"]
    assert twins_of(known) == [None] * 3


@given(pairs=st.integers(1, 12), size=st.integers(1, 12), seed=st.integers(0, 5), singles=st.integers(0, 5))
def test_twins_never_share_a_step(pairs: int, size: int, seed: int, singles: int) -> None:
    twins = [f"p{index // 2}" for index in range(2 * pairs)] + [None] * singles
    order = Order(len(twins), size, 2, seed, twins)
    steps = [order.batch(step) for step in range(order.num_steps)]
    for epoch in range(2):
        own = [index for step in steps[epoch * order.steps_per_epoch :][: order.steps_per_epoch] for index in step]
        assert sorted(own) == list(range(len(twins)))
    if size <= pairs:
        for step in steps:
            named = [twins[index] for index in step if twins[index] is not None]
            assert len(named) == len(set(named))


def test_order_without_twins_is_as_it_was() -> None:
    plain = Order(9, 4, 2, 3)
    assert [plain.batch(step) for step in range(6)] == [Order(9, 4, 2, 3, [None] * 9).batch(step) for step in range(6)]


@pytest.mark.parametrize(
    ("arrange", "told"),
    [
        (
            "curry",
            r"pair s0#0\.0: it must have a list of answers in sides\.answers, a score for each in values\.scores",
        ),
        ("temporal", r"pair s0#0\.0: it must have a list of answers in sides\.answers"),
        ("easy_to_hard", r"pair s0#0\.0: has no gap"),
        ("mpo_easy", r"pair s0#0\.0: has no gap"),
        ("reward_augmented", r"pair s0#0\.0: values\.chosen_reward is None; it must be a number"),
    ],
)
def test_what_a_pair_lacks_is_named(arrange: Any, told: str) -> None:
    with pytest.raises(TrainError, match=told):
        arranged(rows(), quick(arrange=arrange, stages="renew"))


def test_scores_are_one_for_each_answer() -> None:
    row = carrying(rows(1)[0], {"answers": answers("a", "b")}, {"scores": [1, 2, 3]})
    with pytest.raises(TrainError, match="a score for each"):
        curry([row])
    with pytest.raises(TrainError, match="a score for each"):
        curry([carrying(row, {"answers": answers("a", "b")}, {"scores": [1, None]})])


def test_arrangements_that_leave_nothing_or_too_little() -> None:
    known = [carrying(row, {}, {"chosen_reward": 2, "rejected_reward": 1}) for row in rows(3)]
    with pytest.raises(TrainError, match=r"train\.batch_size is 4, but 3 pairs are under two goals each"):
        arranged(known, quick(arrange="reward_augmented"))
    assert len(arranged(known, quick(arrange="reward_augmented", batch_size=3))) == 6
    equal = [carrying(row, {}, {"chosen_reward": 1, "rejected_reward": 1}) for row in rows(3)]
    with pytest.raises(TrainError, match=r"train\.arrange is reward_augmented: none of the 3 pairs makes one"):
        arranged(equal, quick(arrange="reward_augmented"))
    assert arranged(known, quick()) == known


def test_stages_need_to_be_asked_for() -> None:
    for arrange in ("curry", "easy_to_hard"):
        with pytest.raises(ValueError, match=f"arrange is {arrange}, but stages is mixed; set stages to renew"):
            quick(arrange=arrange)
    assert set(READS) | {"as_made"} == set(get_args(Arrangement))


def test_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: {name: self_consistency}\nobjective: {name: dpo}\ntrain: {arrange: mpo_easy}\n")
    assert load_recipe(path).train.arrange == "mpo_easy"
    with pytest.raises(RecipeError, match=r"train\.arrange: curry needs side:answers .*method self_consistency do not"):
        load_recipe(path, ["--train.arrange", "curry", "--train.stages", "renew"])


def test_curry_runs_stage_after_stage(tmp_path: Path) -> None:
    known = [
        carrying(row, {"answers": answers("Yes.", "No.", "There is a crab.")}, {"scores": [3, 2, 1]})
        for row in make_rows(tmp_path, 2, pictures=0)
    ]
    config = quick(arrange="curry", stages="renew", batch_size=2)
    from mmalign.objectives import DPO

    result = train_pairs(tiny("llama"), known, DPO(), config, tmp_path, tmp_path / "run", quiet=True)
    assert (result.num_pairs, result.steps) == (4, 2)
    assert {path.name for path in (tmp_path / "run").glob("stage-*")} == {"stage-0", "stage-1"}
