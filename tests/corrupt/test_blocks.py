"""Orders of places: TEMPLE's worked table, and what holds for every number and ratio."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.corrupt.blocks import (
    block_size,
    blocks,
    distinct_ratios,
    drop,
    joined,
    new_order,
    reverse,
    rotated,
    segments,
    shuffle,
)

numbers, ratios, seeds = st.integers(2, 70), st.integers(2, 20), st.integers(0, 2**32)


@pytest.mark.parametrize(("m", "kept", "num_blocks"), [(2, 5, 2), (4, 2, 5), (8, 1, 10), (16, 1, 10)])
def test_the_table_of_the_specification(m: int, kept: int, num_blocks: int) -> None:
    # TEMPLE with ten clips.
    assert len(drop(10, m, random.Random(0))) == kept
    assert len(blocks(10, block_size(10, m))) == num_blocks


@pytest.mark.parametrize(
    ("n", "m", "order"),
    [
        (10, 4, [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]),
        (10, 2, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]),
        (10, 8, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (5, 2, [4, 2, 3, 0, 1]),
        (11, 4, [10, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1]),
        (2, 2, [1, 0]),
    ],
)
def test_reversed_blocks_by_hand(n: int, m: int, order: list[int]) -> None:
    assert reverse(n, m) == order


def test_two_blocks_have_one_other_order_only() -> None:
    assert all(shuffle(10, 2, random.Random(seed)) == reverse(10, 2) for seed in range(20))


def test_all_other_orders_are_equally_likely() -> None:
    # Five items in blocks of 2, 2 and 1: of six orders the one given and its reversal are left out.
    rng = random.Random(1)
    counts = Counter(tuple(shuffle(5, 2, rng)) for _ in range(4000))
    parts = [[0, 1], [2, 3], [4]]
    allowed = {tuple(joined(parts[at] for at in order)) for order in permutations(range(3))}
    assert set(counts) == allowed - {(0, 1, 2, 3, 4), (4, 2, 3, 0, 1)}
    # Six standard deviations of a quarter of 4000.
    assert all(count == pytest.approx(1000, abs=165) for count in counts.values())


def test_every_item_is_kept_equally_often() -> None:
    rng = random.Random(2)
    counts = Counter(place for _ in range(4000) for place in drop(10, 4, rng))
    assert set(counts) == set(range(10))
    assert all(count == pytest.approx(800, abs=155) for count in counts.values())


def test_orders_are_pinned() -> None:
    # random.Random(0).random() gives .844, .758, .421, .259, .511, .405: sorted, their places are 3 5 2 4 1 0.
    assert new_order(6, random.Random(0)) == [3, 5, 2, 4, 1, 0]
    assert shuffle(12, 6, random.Random(0)) == [6, 7, 10, 11, 4, 5, 8, 9, 2, 3, 0, 1]
    assert drop(6, 2, random.Random(0)) == [2, 3, 5]


@given(n=numbers, m=ratios, seed=seeds)
@settings(deadline=None)
def test_drop_keeps_the_order_and_as_many_as_a_block_has(n: int, m: int, seed: int) -> None:
    kept = drop(n, m, random.Random(seed))
    assert kept == sorted(set(kept))
    assert set(kept) < set(range(n))
    assert len(kept) == max(1, n // m)
    assert kept == drop(n, m, random.Random(seed))


@given(n=numbers, m=ratios, seed=seeds)
@settings(deadline=None)
def test_blocks_stay_whole_and_move(n: int, m: int, seed: int) -> None:
    size = max(1, n // m)
    for order in (reverse(n, m), shuffle(n, m, random.Random(seed))):
        assert sorted(order) == list(range(n))
        assert order != list(range(n))
        # Inside a block every place is followed by the next one.
        follows = dict(pairwise(order))
        assert all(follows[place] == place + 1 for place in range(n - 1) if (place + 1) % size)
    if -(-n // size) > 2:
        assert shuffle(n, m, random.Random(seed)) != reverse(n, m)


@given(n=numbers, m=ratios)
@settings(deadline=None)
def test_reversed_twice_is_as_before_where_blocks_divide(n: int, m: int) -> None:
    once = reverse(n, m)
    twice = [once[place] for place in once]
    if n % max(1, n // m) == 0:
        assert twice == list(range(n))


def test_reversed_twice_differs_where_blocks_do_not_divide() -> None:
    once = reverse(5, 2)
    assert [once[place] for place in once] == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("n", [0, 1])
def test_one_item_has_no_damage(n: int) -> None:
    for damage in (
        lambda: drop(n, 2, random.Random(0)),
        lambda: reverse(n, 2),
        lambda: shuffle(n, 2, random.Random(0)),
    ):
        with pytest.raises(ValueError, match=f"{n} items have one order only"):
            damage()
    assert distinct_ratios(n, (16, 8, 4, 2)) == []


def test_one_block_has_no_damage() -> None:
    with pytest.raises(ValueError, match="a ratio of 1 makes one single block"):
        reverse(10, 1)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(2, [16]), (3, [16]), (4, [16, 2]), (8, [16, 4, 2]), (10, [16, 4, 2]), (16, [16, 8, 4, 2]), (40, [16, 8, 4, 2])],
)
def test_ratios_with_equal_blocks_count_once(n: int, expected: list[int]) -> None:
    assert distinct_ratios(n, (16, 8, 4, 2)) == expected


@given(n=numbers, num=st.integers(1, 12))
@settings(deadline=None)
def test_segments_cover_everything_and_differ_by_one(n: int, num: int) -> None:
    num = min(num, n)
    parts = segments(n, num)
    assert joined(parts) == list(range(n))
    assert len(parts) == num
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.sampled_from("ABAC"), min_size=2, max_size=6), st.integers(1, 4))
@settings(deadline=None)
def test_a_rotation_shows_a_change_if_any_order_of_the_blocks_does(looks: list[str], size: int) -> None:
    parts = blocks(len(looks), size)
    orders = (joined(order) for order in permutations(parts))
    any_shows = any([looks[place] for place in order] != looks for order in orders)
    assert ([looks[place] for place in rotated(parts)] != looks) == any_shows
