"""What each stage of a curriculum trains on, known before the first one starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmalign.objectives import SFT, Objective
from mmalign.pairs import PairRow
from mmalign.train.cache.reference import Measured
from mmalign.train.config import TrainConfig
from mmalign.train.data.lengths import short_enough
from mmalign.train.data.spans import teaching, with_spans
from mmalign.train.step import in_order, sides_of

log = logging.getLogger("mmalign.train")


@dataclass(frozen=True, slots=True)
class Stage:
    """Pairs that are trained on together, all of which can be, what they are trained for, and their lengths."""

    name: str
    rows: list[PairRow]
    objective: Objective
    measured: Measured


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Stages in the order they are trained; how many different pairs they hold, and how many are in none."""

    stages: list[Stage]
    num_pairs: int
    num_dropped: int


def curriculum(
    rows: Sequence[PairRow],
    objective: Objective,
    config: TrainConfig,
    measure: Callable[[list[PairRow], tuple[str, ...]], Measured],
) -> Curriculum:
    """The stages that the pairs name, in ascending order, and the one of plain likelihood where it is asked for.

    `measure` is told all pairs of all stages at once, and the sides that some stage looks at. A stage of which no pair
    is short enough and teaches the objective something is left out, with a line in the log. Raises TrainError when all
    that the pairs name would be, or `config.overlong` refuses a pair.
    """
    rows = with_spans(rows, objective)
    taught = teaching(rows, objective)
    everything = list(range(len(rows)))
    goals = [(objective, taught), *([(SFT(), everything)] if config.sft_after_stages else [])]
    sides = in_order(side for goal, _ in goals for side in sides_of(goal, rows))
    _, used = goals[-1]
    measured = measure([rows[place] for place in used], sides)
    index_of = {place: index for index, place in enumerate(used)}

    def known(places: Sequence[int], goal: Objective) -> Measured:
        own = [sides.index(side) for side in sides_of(goal, rows)]
        return measured.part([index_of[place] for place in places], own)

    def stage(name: str, places: Sequence[int], goal: Objective) -> Stage:
        return Stage(name, [rows[place] for place in places], goal, known(places, goal))

    fit = []
    for goal, places in goals:
        kept = short_enough([rows[place] for place in places], known(places, goal).lengths, config)
        fit.append([places[index] for index in kept])
    stages = []
    for number in sorted({row.stage for row in rows}):
        if own := [place for place in fit[0] if rows[place].stage == number]:
            stages.append(stage(f"stage-{number}", own, objective))
            continue
        given, left = (sum(rows[place].stage == number for place in places) for places in (everything, taught))
        log.warning(
            "stage-%d is skipped: of its %d pairs %d are longer than train.max_length %s, %d have no words that differ",
            *(number, given, left, config.max_length, given - left),
        )
    stages += [stage("stage-sft", own, goal) for (goal, _), own in zip(goals[1:], fit[1:], strict=True)]
    num_pairs = len(set().union(*fit))
    return Curriculum(stages, num_pairs, len(rows) - num_pairs)
