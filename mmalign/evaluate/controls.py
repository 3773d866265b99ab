"""Controls: what a result has to beat before it means that the preferences did the work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from mmalign.pairs import PairRow


def random_signs(rows: Sequence[PairRow], seed: int) -> list[PairRow]:
    """The same pairs, each turned round with probability 1/2: same texts, same steps, no preference.

    The coin of a pair depends on the seed and its id alone, so the order of the rows does not matter.
    """
    return [turned(row) if random.Random(f"random signs/{seed}/{row.id}").random() < 0.5 else row for row in rows]


def turned(row: PairRow) -> PairRow:
    """The pair with chosen and rejected exchanged, contexts and spans with them."""
    return replace(
        row,
        chosen=row.rejected,
        rejected=row.chosen,
        context=row.context if row.rejected_context is None else row.rejected_context,
        rejected_context=None if row.rejected_context is None else row.context,
        chosen_spans=row.rejected_spans,
        rejected_spans=row.chosen_spans,
        gap=None if row.gap is None else -row.gap,
    )
