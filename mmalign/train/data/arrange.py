"""What is made of the pairs before they are trained on: schedules over the table of pairs, which have no loss.

Each is a pure function, rows in and rows out, around one of `mmalign.objectives.schedules`; `train.arrange` names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from mmalign.errors import TrainError
from mmalign.objectives import Need
from mmalign.objectives.schedules import Picked, curry_stages, easy_to_hard, goal_pairs, mpo_split, temporal_pair
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow
from mmalign.train.config import TrainConfig
from mmalign.types import Row

log = logging.getLogger("mmalign.train")

#: What is asked for in the system turn of a pair under a goal.
GOAL = "Give an answer whose overall score is {goal:g}."
#: In the provenance of such a pair: the pair that it is one of two versions of.
GOAL_OF = "goal_of"
#: What each arrangement reads of the pairs, as objectives name it.
READS: Final[dict[str, tuple[Need, ...]]] = {
    "curry": ("side:answers", "value:scores"),
    "easy_to_hard": ("value:gap",),
    "mpo_easy": ("value:gap",),
    "mpo_hard": ("value:gap",),
    "temporal": ("side:answers", "side:first_answers", "value:first_scores", "value:scores"),
    "reward_augmented": ("value:chosen_reward", "value:rejected_reward"),
}
#: Of each model of temporal self-rewarding, the columns of its answers and of their scores.
_TEMPORAL = {
    "now": ("answers", "scores"),
    "first": ("first_answers", "first_scores"),
    "next": ("next_answers", "next_scores"),
}


def arranged(rows: Sequence[PairRow], config: TrainConfig) -> list[PairRow]:
    """What `config.arrange` makes of the rows; how many there were and are goes to the log.

    Raises TrainError, naming the pair, for one that lacks what is needed, and when nothing is left.
    """
    makers: dict[str, Callable[[Sequence[PairRow]], list[PairRow]]] = {
        "as_made": list,
        "curry": curry,
        "easy_to_hard": partial(staged_by_gap, stages=config.num_stages),
        "mpo_easy": easy_pairs,
        "mpo_hard": hard_pairs,
        "temporal": temporal,
        "reward_augmented": reward_augmented,
    }
    found = makers[config.arrange](rows)
    if config.arrange == "as_made":
        return found
    if not found:
        raise TrainError(f"train.arrange is {config.arrange}: none of the {len(rows)} pairs makes one to train on")
    if any(twins_of(found)) and config.batch_size > len(found) // 2:
        raise TrainError(
            f"train.batch_size is {config.batch_size}, but {len(found) // 2} pairs are under two goals each, which no "
            "step is to mix; lower it to as many"
        )
    log.info("train.arrange is %s: %d pairs of %d", config.arrange, len(found), len(rows))
    return found


def curry(rows: Sequence[PairRow]) -> list[PairRow]:
    """Curry-DPO (arXiv 2403.07230): of the answers of each row (`sides.answers`, `values.scores`) the best against the
    worst in stage 0, then against better and better ones; answers as good as the best make no pair.
    """
    found = []
    for row in rows:
        answers, scores = _scored(row, "answers", "scores")
        for stage, (good, bad) in enumerate(curry_stages(scores)):
            made = _pair(row, answers[good], answers[bad], scores[good] - scores[bad], f"{row.id}/{stage}")
            found.append(replace(made, stage=stage))
    return found


def staged_by_gap(rows: Sequence[PairRow], stages: int) -> list[PairRow]:
    """TEMPLE (arXiv 2503.16929): `stages` equal shares from the largest gap to the smallest, as stages 0, 1, ..."""
    numbers = easy_to_hard([_gap(row) for row in rows], stages)
    return [replace(row, stage=stage) for row, stage in zip(rows, numbers, strict=True)]


def easy_pairs(rows: Sequence[PairRow], least: float | None = None) -> list[PairRow]:
    """MPO's first stage: the pairs with a gap above `least` (the median gap), for DPO."""
    easy, _ = mpo_split([_gap(row) for row in rows], least)
    return [rows[index] for index in easy]


def hard_pairs(rows: Sequence[PairRow], least: float | None = None) -> list[PairRow]:
    """MPO's second stage: the other pairs, whose prompts are for reinforcement learning from where the first ended."""
    _, hard = mpo_split([_gap(row) for row in rows], least)
    return [rows[index] for index in hard]


def temporal(rows: Sequence[PairRow]) -> list[PairRow]:
    """Temporal self-rewarding: the best answer of the current or the next model against the worst of the first's.

    Rows carry the sides "answers" and "first_answers", and for the second phase "next_answers"; the values "scores",
    "first_scores" and "next_scores" are what the current model judges them to be. Rows without a better answer are
    dropped.
    """
    found = []
    for row in rows:
        models = {
            name: _scored(row, *columns) if name != "next" or columns[0] in row.sides else ([], [])
            for name, columns in _TEMPORAL.items()
        }
        picked = temporal_pair(models["now"][1], models["first"][1], models["next"][1])
        if picked is not None:
            good, bad = (_picked(models, one) for one in picked)
            found.append(_pair(row, good[0], bad[0], good[1] - bad[1], row.id))
    return found


def reward_augmented(rows: Sequence[PairRow]) -> list[PairRow]:
    """Reward augmentation (arXiv 2410.08067): each pair under the goal of its higher score, and turned under the other.

    Rows carry the values "chosen_reward" and "rejected_reward"; pairs whose order they deny, or do not tell, are
    dropped. The goal stands in the system turn; the new rewards are minus the squared distances to it. `Order.twins`
    keeps the two of a pair out of one step.
    """
    found = []
    for row in rows:
        scores = [_number(row, f"{side}_reward") for side in ("chosen", "rejected")]
        for number, goal in enumerate(goal_pairs(*scores)):
            good, bad = _side(row, "chosen"), _side(row, "rejected")
            rewards = goal.rewards(*scores)
            if goal.swapped:
                good, bad, rewards = bad, good, rewards[::-1]
            made = _pair(row, good, bad, rewards[0] - rewards[1], f"{row.id}/{number}")
            told = GOAL.format(goal=goal.goal)
            other = made.rejected_context
            found.append(
                replace(
                    made,
                    context=_with_system(made.context, told),
                    rejected_context=None if other is None else _with_system(other, told),
                    values={"chosen_reward": rewards[0], "rejected_reward": rewards[1]},
                    provenance={**row.provenance, GOAL_OF: row.id},
                )
            )
    return found


def twins_of(rows: Sequence[PairRow]) -> list[str | None]:
    """For every row what it is one of two versions of (`Order.twins`)."""
    return [row.provenance.get(GOAL_OF) for row in rows]


# What rows carry ----------------------------------------------------------------------------------------------------


def _scored(row: PairRow, side: str, value: str) -> tuple[list[AnswerRow], list[float]]:
    """The answers of a list and their scores. Raises TrainError where they are not there, or not as many."""
    answers, scores = row.sides.get(side), row.values.get(value)
    is_whole = isinstance(answers, tuple) and isinstance(scores, tuple) and len(answers) == len(scores)
    if not is_whole or not all(isinstance(one, AnswerRow) for one in _of(answers)) or None in _of(scores):
        raise TrainError(
            f"pair {row.id}: it must have a list of answers in sides.{side}, a score for each in values.{value}"
        )
    return _of(answers), _of(scores)


def _of(part: Any) -> list[Any]:
    return list(part)


def _gap(row: PairRow) -> float:
    if row.gap is None:
        raise TrainError(f"pair {row.id}: has no gap, by which train.arrange puts pairs in order")
    return row.gap


def _number(row: PairRow, name: str) -> float:
    value = row.values.get(name)
    if not isinstance(value, int | float):
        raise TrainError(f"pair {row.id}: values.{name} is {value!r:.40}; it must be a number")
    return value


def _side(row: PairRow, name: str) -> AnswerRow:
    found = row.side(name)
    assert isinstance(found, AnswerRow)
    return found


def _picked(models: dict[str, tuple[list[AnswerRow], list[float]]], one: Picked) -> tuple[AnswerRow, float]:
    answers, scores = models[one.model]
    return answers[one.index], scores[one.index]


def _pair(row: PairRow, chosen: AnswerRow, rejected: AnswerRow, gap: float, name: str) -> PairRow:
    """A pair of two answers of a row, each in its context; nothing else that the row carries is about them."""
    context, other = (row.context if side.context is None else side.context for side in (chosen, rejected))
    return replace(
        row,
        id=name,
        chosen=chosen.text,
        rejected=rejected.text,
        context=context,
        rejected_context=None if other == context else other,
        chosen_spans=chosen.spans,
        rejected_spans=rejected.spans,
        gap=gap,
        sides={},
        values={},
    )


def _with_system(turns: list[Row], told: str) -> list[Row]:
    """The turns with a text at the end of the system turn, which is there or is made."""
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": [{"type": "text", "text": told}]}, *turns]
    content = [*turns[0]["content"], {"type": "text", "text": f"\n{told}"}]
    return [{**turns[0], "content": content}, *turns[1:]]
