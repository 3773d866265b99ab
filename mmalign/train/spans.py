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
    """The rows with the spans that the objective needs: those that the pairs carry, else those of a word diff.

    Rows without any are left out, and counted in the log, where the objective can learn nothing from them. Raises
    TrainError when that leaves none.
    """
    if "changed" not in objective.needs:
        return list(rows)
    marked = [row if row.chosen_spans or row.rejected_spans else _marked(row) for row in rows]
    if "phrases" not in objective.needs:
        return marked
    kept = [row for row in marked if row.chosen_spans or row.rejected_spans]
    if len(kept) < len(rows):
        first = next(row.id for row in marked if not (row.chosen_spans or row.rejected_spans))
        what = f"{len(rows) - len(kept)} of {len(rows)} pairs have no words that differ, such as {first}"
        if not kept:
            raise TrainError(f"{what}; {objective.name} learns from these words only: take another objective or method")
        log.warning("%s; they are left out, because %s learns from these words only", what, objective.name)
    return kept


def _marked(row: PairRow) -> PairRow:
    chosen, rejected = phrase_spans(row.chosen, row.rejected)
    return replace(row, chosen_spans=chosen, rejected_spans=rejected)
