"""Controls: what a result has to beat before it means that the preferences did the work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmalign.pairs import PairRow


def random_signs(rows: Sequence[PairRow], seed: int) -> list[PairRow]:
    """The same pairs, each turned round with probability 1/2: same texts, same steps, no preference.

    The coin of a pair depends on the seed and its id alone, so the order of the rows does not matter.
    """
    return [turned(row) if random.Random(f"random signs/{seed}/{row.id}").random() < 0.5 else row for row in rows]


def turned(row: PairRow) -> PairRow:
    """The pair with the preference turned round: texts, contexts and spans change places, and so does all that is about
    a text. What says how good a text is stays where it was, or goes to the answer of opposite rank in a list.
    """
    return replace(
        row,
        chosen=row.rejected,
        rejected=row.chosen,
        context=row.context if row.rejected_context is None else row.rejected_context,
        rejected_context=None if row.rejected_context is None else row.context,
        chosen_spans=row.rejected_spans,
        rejected_spans=row.chosen_spans,
        gap=None if row.gap is None else -row.gap,
        values={_counterpart(name) if name in _ABOUT_TEXTS else name: _turned(name, row) for name in row.values},
        sides={_counterpart(name): side for name, side in row.sides.items()},
    )


#: Numbers that a text has whatever is preferred.
_ABOUT_TEXTS = ("chosen_sources", "rejected_sources")
#: Numbers of the answers of a list by which one is better than another.
_RANKING = ("scores", "levels", "rewards", "first_rewards", "second_rewards", "similarity", "gaps", "log_attributes")


def _counterpart(name: str) -> str:
    """The name with chosen for rejected and the reverse: "rejected_after_chosen" for "chosen_after_rejected"."""
    return "rejected".join(part.replace("rejected", "chosen") for part in name.split("chosen"))


def _turned(name: str, row: PairRow) -> Any:
    value: Any = row.values[name]
    if name == "preferences" and value is not None:
        return tuple(zip(*value, strict=True))
    if name not in _RANKING or not isinstance(value, tuple):
        return value
    order = sorted(range(len(value)), key=value.__getitem__)
    found = list(value)
    for low, high in zip(order, reversed(order), strict=True):
        found[low] = value[high]
    return tuple(found)
