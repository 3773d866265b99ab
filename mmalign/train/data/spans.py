"""The phrases in which the texts of a pair differ, for objectives that weigh tokens by them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from mmalign.errors import TrainError
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.text.diff import phrase_spans

log = logging.getLogger("mmalign.train")


def with_phrases(rows: Sequence[PairRow], objective: Objective) -> list[PairRow]:
    """The rows `with_spans`, without those that teach the objective nothing."""
    marked = with_spans(rows, objective)
    return [marked[index] for index in teaching(marked, objective)]


def with_spans(rows: Sequence[PairRow], objective: Objective) -> list[PairRow]:
    """The rows with the spans that the objective needs: those that the pairs carry, else those of a word diff."""
    if "changed" not in objective.needs:
        return list(rows)
    return [row if _has_spans(row) else _marked(row) for row in rows]


def teaching(rows: Sequence[PairRow], objective: Objective) -> list[int]:
    """Indices of the rows, `with_spans`, that the objective can learn from.

    The others are counted in the log. Raises TrainError when there is none.
    """
    if "phrases" not in objective.needs:
        return list(range(len(rows)))
    found = [index for index, row in enumerate(rows) if _has_spans(row)]
    if len(found) < len(rows):
        first = next(row.id for row in rows if not _has_spans(row))
        what = f"{len(rows) - len(found)} of {len(rows)} pairs have no words that differ, such as {first}"
        if not found:
            raise TrainError(f"{what}; {objective.name} learns from these words only: take another objective or method")
        log.warning("%s; they are left out, because %s learns from these words only", what, objective.name)
    return found


def _has_spans(row: PairRow) -> bool:
    return bool(row.chosen_spans or row.rejected_spans)


def _marked(row: PairRow) -> PairRow:
    chosen, rejected = phrase_spans(row.chosen, row.rejected)
    return replace(row, chosen_spans=chosen, rejected_spans=rejected)
