"""Length balance of a set of pairs, so that training does not learn "shorter is better" (RLAIF-V, released scripts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmalign.pairs import PairRow


def shortening(chosen: str, rejected: str) -> float:
    """(words of rejected - words of chosen) / words of rejected. Texts must not be empty."""
    return 1.0 - len(chosen.split()) / len(rejected.split())


def balanced(rows: Sequence[PairRow]) -> list[PairRow]:
    """The pairs with `shortening` of at most r, for the r among 0, .02 ... .98 that best equalises the mean lengths.

    The best r has the smallest |mean chosen - mean rejected| / mean rejected, in words; of equally good ones the
    largest, which keeps most. Pairs with an empty side are dropped first. The r used is noted in the provenance.
    """
    rows = [row for row in rows if row.chosen.split() and row.rejected.split()]
    measured = [
        (shortening(row.chosen, row.rejected), len(row.chosen.split()), len(row.rejected.split())) for row in rows
    ]
    best: tuple[float, float] | None = None
    for r in [step / 50 for step in range(49, -1, -1)]:
        kept = [(chosen, rejected) for share, chosen, rejected in measured if share <= r]
        if not kept:
            continue
        rejected_words = sum(rejected for _, rejected in kept)
        imbalance = abs(sum(chosen for chosen, _ in kept) - rejected_words) / rejected_words
        if best is None or imbalance < best[0]:
            best = (imbalance, r)
    if best is None:
        return []
    return [
        replace(row, provenance={**row.provenance, "length_guard": best[1]})
        for row, (share, _, _) in zip(rows, measured, strict=True)
        if share <= best[1]
    ]
