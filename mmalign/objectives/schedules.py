"""Which pairs are made of scored answers, and in which order: schedules that have no loss of their own.

Scores in, indices out; whoever holds the table of pairs applies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def curry_stages(scores: Sequence[float]) -> list[tuple[int, int]]:
    """(chosen, rejected) of each stage: the best answer against the worst, then against better and better ones.

    Answers as good as the best make no pair. Pattnaik et al. 2024, arXiv 2403.07230.
    """
    if not scores:
        return []
    best = max(range(len(scores)), key=lambda index: (scores[index], -index))
    worse = [index for index in range(len(scores)) if scores[index] < scores[best]]
    return [(best, index) for index in sorted(worse, key=lambda index: scores[index])]


def easy_to_hard(gaps: Sequence[float], stages: int) -> list[int]:
    """The stage, 0 first, of every pair: equal shares from the largest gap to the smallest.

    TEMPLE, Li et al. 2025, arXiv 2503.16929.
    """
    if stages < 1:
        raise ValueError(f"stages is {stages}; it must be 1 or more")
    order = sorted(range(len(gaps)), key=lambda index: (-gaps[index], index))
    found = [0] * len(gaps)
    for place, index in enumerate(order):
        found[index] = place * stages // len(gaps)
    return found


def mpo_split(gaps: Sequence[float], least: float | None = None) -> tuple[list[int], list[int]]:
    """Indices of easy pairs, for DPO, and of hard ones, whose prompts are for reinforcement learning.

    Easy is a reward gap above `least`, the median gap when not given; a gap of 0 or less is never easy.
    """
    if least is None:
        ordered = sorted(gaps)
        middle = len(ordered) // 2
        least = (ordered[middle] + ordered[~middle]) / 2 if ordered else 0.0
    easy = [index for index, gap in enumerate(gaps) if gap > max(least, 0.0)]
    kept = set(easy)
    return easy, [index for index in range(len(gaps)) if index not in kept]


def kl_reward(reward: float, log_ratio: float, beta: float) -> float:
    """The reward of the second stage: less beta times the log-ratio to the model of the first."""
    return reward - beta * log_ratio


@dataclass(frozen=True, slots=True)
class Picked:
    """An answer: of which model ("now", "first" or "next"), and which of its answers."""

    model: str
    index: int


def temporal_pair(
    now: Sequence[float], first: Sequence[float], future: Sequence[float] = ()
) -> tuple[Picked, Picked] | None:
    """Chosen and rejected of temporal self-rewarding, by scores of answers that the current model judged.

    Rejected is the first model's worst answer where it is worse than the current one's; chosen is the current model's
    best, or the next model's (`future`, second phase) where that is better. None where chosen is not above rejected.
    """
    if not now:
        return None
    chosen, best = Picked("now", _best(now)), max(now)
    if future and max(future) > best:
        chosen, best = Picked("next", _best(future)), max(future)
    rejected, worst = Picked("now", _worst(now)), min(now)
    if first and min(first) < worst:
        rejected, worst = Picked("first", _worst(first)), min(first)
    return (chosen, rejected) if best > worst else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A pair under a goal named in the prompt; `swapped` where the lower answer is nearer to it."""

    goal: float
    swapped: bool

    def rewards(self, chosen: float, rejected: float) -> tuple[float, float]:
        """-(score - goal)^2 of the answers with these scores."""
        return -((chosen - self.goal) ** 2), -((rejected - self.goal) ** 2)


def goal_pairs(chosen: float, rejected: float) -> tuple[Goal, ...]:
    """The two pairs that reward augmentation makes of one with these scores; none unless chosen is above rejected.

    Zhang et al. 2024, arXiv 2410.08067. The two of a pair had better not share a batch.
    """
    return (Goal(chosen, False), Goal(rejected, True)) if chosen > rejected else ()


def half_ranked_pairs(scores: Sequence[float]) -> list[tuple[int, int]]:
    """(chosen, rejected) of K answers: rank i with rank i + K / 2 (our reading of OSP); equal scores make none."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    half = len(order) // 2
    pairs = [(order[index], order[index + len(order) - half]) for index in range(half)]
    return [(good, bad) for good, bad in pairs if scores[good] > scores[bad]]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def _worst(scores: Sequence[float]) -> int:
    return min(range(len(scores)), key=lambda index: (scores[index], index))
