"""CHAIR: how often descriptions name things that are not there (Rohrbach et al., 2018, arXiv 1809.02156)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chair:
    """Shares in [0, 1]; NaN-free: a share of nothing is 0.

    `chair_i`: wrong mentions / mentions. `chair_s`: answers with a wrong mention / answers. `recall`: distinct right
    objects named / objects there, over all answers. `mentions`: mean number of mentions per answer.
    """

    chair_i: float
    chair_s: float
    recall: float
    mentions: float


def chair(mentions: Sequence[Sequence[str]], truths: Sequence[Collection[str]]) -> Chair:
    """Score answers by the objects they mention, with repeats, against the objects that are there.

    Raises ValueError when there are no answers or their number is not that of the truths.
    """
    if not mentions or len(mentions) != len(truths):
        raise ValueError(f"{len(mentions)} answers and {len(truths)} truths: need as many of each, and at least one")
    pairs = [(list(named), set(there)) for named, there in zip(mentions, truths, strict=True)]
    wrong = [sum(name not in there for name in named) for named, there in pairs]
    total = sum(len(named) for named, _ in pairs)
    there_in_all = sum(len(there) for _, there in pairs)
    found = sum(len(set(named) & there) for named, there in pairs)
    return Chair(
        chair_i=sum(wrong) / total if total else 0.0,
        chair_s=sum(count > 0 for count in wrong) / len(pairs),
        recall=found / there_in_all if there_in_all else 0.0,
        mentions=total / len(pairs),
    )
