"""Schedules over scored answers against the specification's numbers."""

from __future__ import annotations

import pytest

from mmalign.objectives.schedules import (
    Goal,
    Picked,
    curry_stages,
    easy_to_hard,
    goal_pairs,
    half_ranked_pairs,
    kl_reward,
    mpo_split,
    temporal_pair,
)


def test_curry() -> None:
    assert curry_stages([9, 7, 4, 2]) == [(0, 3), (0, 2), (0, 1)]
    assert curry_stages([2, 9, 9]) == [(1, 0)]
    assert curry_stages([3, 3]) == curry_stages([]) == []


def test_easy_to_hard() -> None:
    assert easy_to_hard([1, 5, 3, 2], 2) == [1, 0, 0, 1]
    assert easy_to_hard([1, 5, 3], 1) == [0, 0, 0]
    with pytest.raises(ValueError, match="stages is 0"):
        easy_to_hard([1], 0)


def test_mpo() -> None:
    assert mpo_split([3 - 0.5, 1 - 0.8], 1) == ([0], [1])
    assert mpo_split([4, 1, 2]) == ([0], [1, 2])
    assert mpo_split([-4, -1, -2]) == ([], [0, 1, 2]), "a wrong label is never easy"
    assert [kl_reward(1, 2, 0.1), kl_reward(0.2, -1, 0.1)] == pytest.approx([0.8, 0.3])


def test_temporal() -> None:
    now, first, future = [6, 8, 7], [3, 5, 4], [7, 9]
    assert temporal_pair(now, first) == (Picked("now", 1), Picked("first", 0))
    assert temporal_pair(now, first, future) == (Picked("next", 1), Picked("first", 0))
    assert temporal_pair(now, [6, 7]) == (Picked("now", 1), Picked("now", 0))
    assert temporal_pair([5, 5], [5]) is None
    assert temporal_pair([], [5]) is None


def test_goals() -> None:
    high, low = goal_pairs(8, 5)
    assert (high, low) == (Goal(8, False), Goal(5, True))
    assert high.rewards(8, 5) == (0, -9)
    assert low.rewards(8, 5) == (-9, 0)
    assert goal_pairs(5, 5) == goal_pairs(4, 5) == ()


def test_half_ranked_pairs() -> None:
    assert half_ranked_pairs([0.1, 0.9, 0.5, 0.3]) == [(1, 3), (2, 0)]
    assert half_ranked_pairs([1, 1]) == []
