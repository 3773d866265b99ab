"""What the page says: the verdict follows the numbers, also where they are bad news."""

from __future__ import annotations

import pytest

from mmalign.report.stats import Evaluation
from mmalign.report.words import account


def measured(*rows: tuple[str, float, float], num: int = 200) -> Evaluation:
    """Rows of (kind or control name, CHAIR_s, recall)."""
    entries = [
        {
            "name": name,
            "kind": name if name in ("before", "after") else "control",
            "seed": 0,
            "values": {"chair_s": chair_s, "recall": recall},
        }
        for name, chair_s, recall in rows
    ]
    return Evaluation.of({"num_scenes": num, "columns": ["chair_s", "recall"], "rows": entries})


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((0.47, 0.98), (0.04, 0.95), "better"),
        ((0.47, 0.98), (0.04, 0.80), "trade"),
        ((0.47, 0.98), (0.44, 0.98), "same"),
        ((0.47, 0.98), (0.70, 0.98), "worse"),
        ((0.47, 0.98), (0.44, 0.60), "worse"),
    ],
)
def test_verdict(before: tuple[float, float], after: tuple[float, float], verdict: str) -> None:
    assert account(measured(("before", *before), ("after", *after)), 9).verdict == verdict


def test_the_same_drop_is_no_clear_difference_on_few_pictures() -> None:
    rows = (("before", 0.4, 0.9), ("after", 0.2, 0.9))
    assert account(measured(*rows, num=1000), 9).verdict == "better"
    assert account(measured(*rows, num=10), 9).verdict == "same"
    assert account(measured(*rows, num=0), 9).verdict == "same"


def test_summary_is_one_sentence_with_the_numbers() -> None:
    summary = account(measured(("before", 0.47, 0.98), ("after", 0.04, 0.995)), 9).summary
    for number in ("47\u00a0%", "4.0\u00a0%", "98\u00a0%", "99.5\u00a0%"):
        assert number in summary
    assert summary.count(". ") == 0
    assert summary.endswith(".")


def test_a_control_that_does_as_well_is_said() -> None:
    told = account(measured(("before", 0.47, 0.9), ("after", 0.04, 0.9), ("control: sft", 0.05, 0.95)), 9)
    assert any("control “sft” does as well and keeps more recall" in text for text in told.not_shown)
    told = account(measured(("before", 0.47, 0.9), ("after", 0.04, 0.9), ("control: sft", 0.4, 0.9)), 9)
    assert any("beats the control “sft”" in text for text in told.shows)


def test_missing_controls_and_single_seeds_are_said() -> None:
    told = account(measured(("before", 0.47, 0.9), ("after", 0.04, 0.9)), 9)
    assert any("no controls were run" in text for text in told.not_shown)
    assert any("only one seed" in text for text in told.not_shown)


def test_without_numbers_it_says_how_far_the_run_came() -> None:
    assert account(None, 0).summary == "No pairs have been made yet."
    assert account(None, 1234).summary.startswith("1,234 pairs have been made; what training")
    assert "after training" in account(measured(("before", 0.4, 0.9)), 3).summary


def told_events(before: tuple[float, float, float], after: tuple[float, float, float]) -> Evaluation:
    """Clips: share of answers with a false event, event recall, order."""
    names = ("event_chair_s", "event_recall", "order")
    rows = [
        {"name": kind, "kind": kind, "seed": 0, "values": dict(zip(names, values, strict=True))}
        for kind, values in (("before", before), ("after", after))
    ]
    return Evaluation.of({"num_scenes": 200, "what": "drawn clips", "columns": list(names), "rows": rows})


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ((0.1, 0.80, 0.9), "better"),
        ((0.1, 0.70, 0.9), "trade"),
        ((0.1, 0.80, 0.7), "trade"),
        ((0.4, 0.80, 0.7), "worse"),
        ((0.6, 0.80, 0.9), "worse"),
    ],
)
def test_events_of_clips_count_with_recall_and_order(after: tuple[float, float, float], verdict: str) -> None:
    told = account(told_events((0.4, 0.8, 0.9), after), 9)
    assert told.verdict == verdict
    assert "event that does not happen in the clip in 40\u00a0%" in told.summary
    assert f"{100 * after[2]:.0f}\u00a0% of their pairs in order, 90\u00a0% before" in told.summary
    assert any("200 clips" in text for text in told.shows)
    assert not any("picture" in text for text in (told.summary, *told.shows, *told.not_shown))


def test_other_metrics_are_compared_too() -> None:
    rows = [
        {"name": kind, "kind": kind, "seed": 0, "values": {"accuracy": value}}
        for kind, value in (("before", 0.5), ("after", 0.8))
    ]
    told = account(Evaluation.of({"num_scenes": 300, "columns": ["accuracy"], "rows": rows}), 3)
    assert told.verdict == "better"
    assert "50.0\u00a0% before" in told.summary
