from mmalign.evaluate.controls import random_signs, turned
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow


def row(index: int, **more: object) -> PairRow:
    turn = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    return PairRow(
        id=f"s{index}#0.0", sample_id=f"s{index}", method="m", context=turn, chosen="good", rejected="bad", **more
    )


def test_about_half_of_the_pairs_are_turned_and_none_is_lost() -> None:
    rows = [row(index) for index in range(400)]
    mixed = random_signs(rows, seed=0)
    assert [r.id for r in mixed] == [r.id for r in rows]
    num_turned = sum(r.chosen == "bad" for r in mixed)
    assert 160 <= num_turned <= 240  # 4 sigma around 200
    assert all({r.chosen, r.rejected} == {"good", "bad"} for r in mixed)


def test_the_coin_depends_on_seed_and_id_alone() -> None:
    rows = [row(index) for index in range(50)]
    by_id = {r.id: r for r in random_signs(rows[::-1], seed=1)}
    assert all(by_id[r.id] == r for r in random_signs(rows, seed=1))
    assert random_signs(rows, seed=1) != random_signs(rows, seed=2)


def test_turning_exchanges_everything_that_belongs_to_a_side() -> None:
    other = [{"role": "user", "content": [{"type": "text", "text": "other"}]}]
    one = row(0, rejected_context=other, chosen_spans=((0, 1),), rejected_spans=((1, 2),), gap=2.0)
    back = turned(one)
    assert (back.chosen, back.rejected, back.gap) == ("bad", "good", -2.0)
    assert (back.context, back.rejected_context) == (other, one.context)
    assert (back.chosen_spans, back.rejected_spans) == (((1, 2),), ((0, 1),))
    assert turned(back) == one


def test_turning_turns_what_else_a_pair_carries() -> None:
    gold, good, bad = (AnswerRow(text=text) for text in ("best", "good", "bad"))
    one = row(
        0,
        values={
            "chosen_reward": 2.0,
            "rejected_reward": 1.0,
            "chosen_sources": (-1.0,),
            "rejected_sources": (-2.0,),
            "scores": (0.1, 0.9, 0.5, 0.7),
            "preferences": ((0.5, 0.8), (0.2, 0.5)),
            "log_prior": (-1.0, -2.0, -3.0, -4.0),
        },
        sides={"gold": gold, "chosen_after_rejected": good, "rejected_after_rejected": bad, "answers": (good, bad)},
    )
    back = turned(one)
    assert back.values == {
        "chosen_reward": 2.0,  # the preference is in these: now it is for the other text
        "rejected_reward": 1.0,
        "chosen_sources": (-2.0,),
        "rejected_sources": (-1.0,),
        "scores": (0.9, 0.1, 0.7, 0.5),
        "preferences": ((0.5, 0.2), (0.8, 0.5)),
        "log_prior": (-1.0, -2.0, -3.0, -4.0),
    }
    assert back.sides == {
        "gold": gold,
        "rejected_after_chosen": good,
        "chosen_after_chosen": bad,
        "answers": (good, bad),
    }
    assert turned(back) == one
