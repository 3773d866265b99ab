"""What the panels of a training say: one curve after an interruption, stages, and likelihood displacement in words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmalign.report.curves import CONTROL_CURVES, CURVES, displacement, in_order, new_stages, points
from mmalign.report.plots import training_curves


def run(count: int, **ends: float) -> list[dict[str, float]]:
    """Steps in which every metric goes evenly from 0 to its end."""
    return [{"step": step, **{key: end * step / count for key, end in ends.items()}} for step in range(1, count + 1)]


def test_a_step_done_again_counts_once_as_it_was_done_last() -> None:
    first, again = run(6, loss=6.0), [{**row, "loss": -row["loss"]} for row in run(8, loss=8.0)[4:]]
    steps = in_order([*first, *again])
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [y for _, y in points(steps, "loss")] == [1, 2, 3, 4, -5, -6, -7, -8]
    [plot] = training_curves([*first, *again])
    assert plot.alt.endswith("steps 1 to 8.")


def test_thinning_keeps_the_mean_of_each_bin() -> None:
    steps = [{"step": step, "loss": float(step % 2)} for step in range(1000)]
    found = points(steps, "loss")
    assert len(found) == 334
    assert found[0] == (1.0, pytest.approx(1 / 3))
    assert math.fsum(y for _, y in found[:-1]) / 333 == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (-3.0, -9.0, "Chosen texts lost 3 nats, rejected ones lost 9 nats: likelihood displacement"),
        (-9.0, -3.0, "the chosen ones lose more than the rejected ones."),
        (4.0, -2.5, "Chosen texts gained 4 nats, rejected ones lost 2.5 nats."),
        (0.05, -2.0, "Chosen texts stayed where they were, rejected ones lost 2 nats."),
    ],
)
@pytest.mark.parametrize("names", [("chosen", "rejected"), ("best", "worst")])
def test_displacement_is_said(names: tuple[str, str], good: float, bad: float, words: str) -> None:
    steps = run(10, **{f"{names[0]}_logps_change": good, f"{names[1]}_logps_change": bad})
    told = displacement(steps).lower()
    assert words.lower().replace("chosen", names[0]).replace("rejected", names[1]) in told
    [plot] = training_curves(steps)
    assert plot.note.lower() == told


def test_nothing_is_said_where_one_side_is_not_known() -> None:
    steps: list[Any] = [{"step": 1, "chosen_logps_change": -3.0, "rejected_logps_change": math.nan}]
    assert displacement(steps) == ""
    assert displacement([{"step": 1, "loss": 1.0}]) == ""


def test_stages_begin_where_the_number_changes() -> None:
    steps = [{"step": step, "stage": float(step > 3), "loss": 1.0} for step in range(1, 7)]
    assert new_stages(steps) == [4]
    assert new_stages([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]) == []
    [plain], [staged] = training_curves([{**row, "stage": 0.0} for row in steps]), training_curves(steps)
    assert plain.light != staged.light
    assert "a new stage from step 4" in staged.alt
    assert "stage" not in plain.alt


def test_the_terms_of_a_sum_have_a_panel() -> None:
    steps = run(4, **{"loss": 1.0, "dpo/loss": 0.5, "sft/loss": 0.25})
    plots = training_curves(steps)
    assert [plot.title for plot in plots] == ["Loss", "Loss of each term"]
    assert "dpo from 0.125 to 0.5" in plots[1].alt
    assert "sft from" in plots[1].alt
    assert [plot.title for plot in training_curves(steps, CONTROL_CURVES)] == ["Loss"]


def test_every_metric_of_a_panel_is_drawn() -> None:
    for curve in CURVES:
        steps = run(3, **{key: 1.0 + number for number, (key, _) in enumerate(curve.metrics)})
        [plot] = training_curves(steps)
        assert all(f"{label} from" in plot.alt for _, label in curve.metrics)
