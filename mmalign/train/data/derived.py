"""Further answers of pairs that follow from the pairs themselves, for objectives that ask for them.

A pair that carries such a side keeps its own. What follows from nothing that pairs hold is not made up here: damaged
media (mdpo), third answers (tpo), verdicts (scir) and rationales come with the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from mmalign.errors import TrainError
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, SideRow
from mmalign.train.step import sides_of
from mmalign.types import Row

#: What a model is asked that is shown an answer (srpo).
IMPROVE = "Give a better answer."
#: The context of an answer alone (sar): the chat template with an empty turn of the user.
ALONE: Final[list[Row]] = [{"role": "user", "content": [{"type": "text", "text": ""}]}]


def with_derived(rows: Sequence[PairRow], objective: Objective) -> list[PairRow]:
    """The rows with the sides that `objective` needs, where they lack them and these follow from the pairs."""
    found = list(rows)
    for name in sides_of(objective):
        if name in DERIVED:
            made = DERIVED[name](rows)
            found = [
                row if name in row.sides or side is None else replace(row, sides={**row.sides, name: side})
                for row, side in zip(found, made, strict=True)
            ]
    return found


def _mismatched(rows: Sequence[PairRow]) -> list[SideRow]:
    """An answer to another prompt (kto): of the next pair with another context, chosen and rejected by turns.

    Its mean log-ratio is the same estimate wherever the answer is from, so it is fixed once for the whole table, not
    taken from the step; then the reference is computed once, too.
    """
    lacking = [index for index, row in enumerate(rows) if "mismatched" not in row.sides]
    if lacking and all(row.context == rows[0].context for row in rows):
        raise TrainError(f"pair {rows[lacking[0]].id}: all pairs have one prompt; kto needs answers to another one")
    made: list[SideRow] = [None] * len(rows)
    for index in lacking:
        after = (rows[(index + step) % len(rows)] for step in range(1, len(rows)))
        other = next(row for row in after if row.context != rows[index].context)
        made[index] = AnswerRow(text=other.chosen if index % 2 == 0 else other.rejected)
    return made


def _after(answer: str, shown: str) -> Callable[[Sequence[PairRow]], list[SideRow]]:
    """An answer after a turn that shows one and a turn that asks for a better one (srpo)."""

    def made(row: PairRow) -> AnswerRow | None:
        if not row.context or row.context[-1]["role"] == "assistant":
            return None  # an answer that is begun already
        turns = [("assistant", getattr(row, shown)), ("user", IMPROVE)]
        told = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        return AnswerRow(text=getattr(row, answer), context=[*row.context, *told])

    return lambda rows: [made(row) for row in rows]


def _view(answer: str) -> Callable[[Sequence[PairRow]], list[SideRow]]:
    """An answer once more, under another dropout (strength_rm)."""
    return lambda rows: [row.side(answer) for row in rows]


def _alone(side: SideRow) -> SideRow:
    """The same answers without question and media."""
    if isinstance(side, tuple):
        return tuple(map(_alone, side))
    return None if side is None else replace(side, context=ALONE)


#: Sides by name, and what makes them of all rows; None where a row has nothing that they follow from.
DERIVED: Final[dict[str, Callable[[Sequence[PairRow]], list[SideRow]]]] = {
    "mismatched": _mismatched,
    "chosen_after_rejected": _after("chosen", "rejected"),
    "rejected_after_chosen": _after("rejected", "chosen"),
    "chosen_after_chosen": _after("chosen", "chosen"),
    "rejected_after_rejected": _after("rejected", "rejected"),
    "chosen_view": _view("chosen"),
    "rejected_view": _view("rejected"),
    "answers_alone": lambda rows: [_alone(row.sides.get("answers")) for row in rows],
}
