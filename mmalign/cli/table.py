"""The result table in the terminal: before, after, controls, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from rich.table import Table

from mmalign.evaluate.table import CLIPS

LABELS = {
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "recall": "recall",
    "colour": "colour",
    "place": "place",
    "mentions": "mentions",
    "event_chair_i": "event CHAIR_i",
    "event_chair_s": "event CHAIR_s",
    "event_recall": "event recall",
    "order": "order",
    "events": "events",
}
#: Columns that are counts per answer; the others are shares.
COUNTS = ("mentions", "events")


def result_table(evaluations: Sequence[dict[str, Any]]) -> Table:
    """One line per model; with several evaluations (seeds), the mean and the largest distance from it."""
    first = evaluations[0]
    seeds = [seed for evaluation in evaluations for seed in evaluation["seeds"]]
    title = f"{first['num_scenes']} {held_out(first)}, {first['task']!r}, seeds {', '.join(map(str, seeds))}"
    table = Table(
        title=title,
        title_justify="left",
        caption="in brackets: controls; ±: the seed farthest from the mean",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    columns = [column for column in LABELS if column in first["columns"]]
    for column in columns:
        table.add_column(LABELS[column], justify="right")
    for row in first["rows"]:
        same = [other["values"] for e in evaluations for other in e["rows"] if other["name"] == row["name"]]
        name = f"({row['name']})" if row["kind"] == "control" else row["name"]
        found = ([values[column] for values in same if column in values] for column in columns)
        table.add_row(name, *(cell(values, column in COUNTS) for values, column in zip(found, columns, strict=True)))
    return table


def held_out(evaluation: dict[str, Any]) -> str:
    """What was measured on."""
    return f"held-out {'clips' if evaluation.get('what') == CLIPS else 'pictures'}"


def cell(values: Sequence[float], count: bool) -> str:
    """A mean, and below it how far the values lie from it at most when there are several."""
    if not values:
        return "–"
    digits = 1 if count else 3
    middle = mean(values)
    text = f"{middle:.{digits}f}"
    return text if len(values) == 1 else f"{text}\n±{max(abs(value - middle) for value in values):.{digits}f}"
