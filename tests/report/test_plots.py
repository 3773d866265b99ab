"""Training curves as numbers: smoothing by hand, thinning of long runs, and nothing left behind in matplotlib."""

from __future__ import annotations

import base64

import matplotlib
import pytest

from mmalign.report.plots import smooth, training_curves


def test_smoothing_by_hand() -> None:
    assert smooth([1.0, 2.0, 6.0, 3.0], 1) == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert smooth([1.0, 5.0], 0) == [1.0, 5.0]


def test_long_runs_are_thinned_and_unknown_or_unfinite_values_left_out() -> None:
    steps = [{"step": step, "loss": 1 / (step + 1), "lr": float("nan")} for step in range(50_000)]
    (plot,) = training_curves(steps)
    assert plot.title == "Loss"
    assert len(base64.b64decode(plot.light.partition(",")[2])) < 60_000
    assert "steps 0 to 49999" in plot.alt
    assert plot.light != plot.dark


def test_one_step_is_a_plot_and_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    plots = training_curves([{"step": 1, "loss": 0.7, "accuracy": 0.5}])
    assert [plot.title.split(":")[0] for plot in plots] == ["Loss", "Accuracy"]
    assert dict(matplotlib.rcParams) == before
