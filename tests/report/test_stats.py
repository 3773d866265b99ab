"""The page's numbers, against values worked by hand and properties that must hold for any input."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.report.stats import (
    Evaluation,
    changes,
    joined,
    num_words,
    pair_numbers,
    pick_evenly,
    share_error,
    spread,
    table,
)


def content(**changed: Any) -> dict[str, Any]:
    rows = [
        {"name": "after", "kind": "after", "seed": 0, "values": {"chair_s": 0.1}},
        {"name": "signs", "kind": "control", "seed": 0, "values": {"chair_s": 0.5}},
        {"name": "before", "kind": "before", "seed": 0, "values": {"chair_s": 0.4, "recall": 0.9}},
        {"name": "after", "kind": "after", "seed": 1, "values": {"chair_s": 0.2}},
        {"name": "before", "kind": "before", "seed": 1, "values": {"chair_s": 0.6}},
    ]
    return {"task": "say", "num_scenes": 50, "columns": ["chair_s", "recall"], "rows": rows, **changed}


def test_spread_of_three_values_by_hand() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert (found.low, found.high, found.num) == (0.1, 0.6, 3)


def test_spread_leaves_out_what_is_not_finite_and_is_none_for_nothing() -> None:
    found = spread([math.nan, 2.0, math.inf])
    assert found is not None
    assert (found.mean, found.std, found.num) == (2.0, 0.0, 1)
    assert spread([math.nan]) is None
    assert spread([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_mean_lies_between_smallest_and_largest(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.low - 1e-6 <= found.mean <= found.high + 1e-6
    assert found.std >= 0


def test_table_takes_seeds_together_and_puts_before_first_and_controls_last() -> None:
    lines = table(Evaluation.of(content()))
    assert [line.name for line in lines] == ["before", "after", "signs"]
    assert lines[0].seeds == (0, 1)
    chair = lines[0].values["chair_s"]
    assert chair is not None
    assert chair.mean == pytest.approx(0.5)
    recall = lines[0].values["recall"]
    assert recall is not None
    assert recall.num == 1
    assert lines[1].values["recall"] is None


def test_changes_go_seed_by_seed() -> None:
    assert changes(Evaluation.of(content()), "chair_s") == pytest.approx([-0.3, -0.4])


def test_one_before_without_a_seed_counts_for_every_seed() -> None:
    rows = [
        {"name": "before", "kind": "before", "seed": None, "values": {"chair_s": 0.5}},
        {"name": "after", "kind": "after", "seed": 3, "values": {"chair_s": 0.2}},
        {"name": "after", "kind": "after", "seed": 4, "values": {"chair_s": 0.6}},
    ]
    assert changes(Evaluation.of(content(rows=rows)), "chair_s") == pytest.approx([-0.3, 0.1])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rows": [{"kind": "before", "values": {}}, {"kind": "sideways", "values": {}}]}, r"rows\[1\]"),
        ({"rows": [{"kind": "before"}]}, r"rows\[0\]"),
        ({"rows": {"a": 1}}, "rows must be a list"),
        ({"notes": "text"}, "notes must be a list"),
    ],
)
def test_wrong_content_is_refused_by_its_key(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Evaluation.of(content(**changed))


def test_runs_join_only_when_measured_alike() -> None:
    one, other = Evaluation.of(content()), Evaluation.of(content(num_scenes=51))
    assert len(joined([one, one]).rows) == 10
    for unlike in (other, Evaluation.of(content(what="drawn clips"))):
        with pytest.raises(ValueError, match="measured with different"):
            joined([one, unlike])


def test_share_error_by_hand_and_never_zero() -> None:
    assert share_error(0.5, 100) == pytest.approx(0.05)
    assert 0 < share_error(0.0, 100) < 0.02
    assert share_error(0.5, 0) == math.inf


def test_words_are_split_at_any_white_space() -> None:
    assert num_words(pa.array(["a b  c", "", "  ", "x\ny\u00a0z\t"])) == [3, 0, 0, 3]


def test_pair_numbers_by_hand() -> None:
    pairs = pa.table(
        {
            "sample_id": ["a", "a", "b"],
            "source": ["x", "y", "x"],
            "chosen": ["one two", "one", "one two three"],
            "rejected": ["one", "one", "one"],
            "gap": pa.array([1.0, None, 2.0]),
        }
    )
    found = pair_numbers(pairs)
    assert (found.num, found.num_samples, found.sources) == (3, 2, (("x", 2), ("y", 1)))
    assert found.chosen_words is not None
    assert found.chosen_words.mean == 2.0
    assert found.gap is not None
    assert (found.gap.mean, found.gap.num) == (1.5, 2)


def test_pick_takes_equal_shares_per_source_and_spreads_over_gaps() -> None:
    sources = ["big"] * 90 + ["small"] * 3
    gaps: list[float | None] = [float(index % 90) for index in range(93)]
    picked = pick_evenly(sources, gaps, 13)
    assert [index for index in picked if index >= 90] == [90, 91, 92]
    assert [gaps[index] for index in picked[:10]] == [float(gap) for gap in range(0, 90, 9)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.floats(-5, 5)), max_size=60), st.integers(-1, 80))
def test_pick_is_ordered_unique_full_and_fair(rows: list[tuple[str, float | None]], most: int) -> None:
    sources = [source for source, _ in rows]
    picked = pick_evenly(sources, [gap for _, gap in rows], most)
    assert picked == sorted(set(picked))
    assert len(picked) == min(max(most, 0), len(rows))
    taken, there = Counter(sources[index] for index in picked), Counter(sources)
    for source in there:
        for other in there:
            if taken[source] < there[source]:
                assert taken[other] <= taken[source] + 1
