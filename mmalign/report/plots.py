"""Training curves as small SVG pictures, each in a light and a dark version, with a text that says what it shows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Steps = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as two SVG data URLs. `alt` says in words what the lines do."""

    title: str
    alt: str
    light: str
    dark: str


@dataclass(frozen=True, slots=True)
class Curve:
    """What one panel shows: the metrics drawn in it, with their names, and a level that means 'nothing learned'."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    idle: float | None = None


CURVES: Final = (
    Curve("Loss", (("loss", "loss"),)),
    Curve("Accuracy: chosen ranked above rejected", (("accuracy", "accuracy"),), idle=0.5),
    Curve("Margin: chosen minus rejected reward", (("margin", "margin"),), idle=0.0),
    Curve(
        "Log-probability change since the start",
        (("chosen_logps_change", "chosen"), ("rejected_logps_change", "rejected")),
        idle=0.0,
    ),
    Curve("Log-probability of the answers", (("chosen_logps", "chosen"), ("rejected_logps", "rejected"))),
    Curve("Learning rate", (("lr", "learning rate"),)),
    Curve("Gradient norm", (("grad_norm", "gradient norm"),)),
)

#: Of control trainings: what tells whether their pairs could be learned at all.
CONTROL_CURVES: Final = CURVES[:3]

#: More steps than this are averaged into as many bins.
MOST_POINTS: Final = 400


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a plot: text, grid, and one per line."""

    ink: str
    grid: str
    lines: tuple[str, str]


LIGHT: Final = Theme("#1d2433", "#d9dee8", ("#1d5fd1", "#b4480f"))
DARK: Final = Theme("#dfe5f1", "#364158", ("#7fb0ff", "#f2a36b"))


def training_curves(steps: Steps, curves: Sequence[Curve] = CURVES) -> list[Plot]:
    """One plot per quantity of `curves` that `metrics.jsonl` holds; what is absent or never finite is left out."""
    plots = []
    for curve in curves:
        lines = [(label, points) for key, label in curve.metrics if (points := _points(steps, key))]
        if lines:
            light, dark = (_draw(lines, curve, theme) for theme in (LIGHT, DARK))
            plots.append(Plot(curve.title, _alt(lines, steps), light, dark))
    return plots


def _points(steps: Steps, key: str) -> list[tuple[float, float]]:
    found = [(row["step"], row[key]) for row in steps if math.isfinite(row.get(key, math.nan))]
    size = math.ceil(len(found) / MOST_POINTS) or 1
    bins = [found[start : start + size] for start in range(0, len(found), size)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in bins]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value with `reach` neighbours on both sides, fewer at the ends; a running mean would lag."""
    parts = (values[max(place - reach, 0) : place + reach + 1] for place in range(len(values)))
    return [math.fsum(part) / len(part) for part in parts]


def _alt(lines: Sequence[tuple[str, list[tuple[float, float]]]], steps: Steps) -> str:
    parts = []
    for label, points in lines:
        values = [y for _, y in points]
        parts.append(
            f"{label} from {values[0]:.3g} to {values[-1]:.3g}, lowest {min(values):.3g}, highest {max(values):.3g}"
        )
    return f"{'; '.join(parts)}; steps {steps[0]['step']:.0f} to {steps[-1]['step']:.0f}."


def _draw(lines: Sequence[tuple[str, list[tuple[float, float]]]], curve: Curve, theme: Theme) -> str:
    ink = theme.ink
    with rc_context({"svg.hashsalt": "mmalign", "svg.fonttype": "path", "font.size": 9, "text.color": ink}):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        if curve.idle is not None:
            axes.axhline(curve.idle, color=ink, linewidth=0.8, linestyle=":", alpha=0.7)
        for (label, points), colour, style in zip(lines, theme.lines, ("-", "--"), strict=False):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            reach = 0 if curve.metrics[0][0] == "lr" else len(ys) // 12
            if reach:
                axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(
                xs,
                smooth(ys, reach),
                color=colour,
                linewidth=1.8,
                linestyle=style,
                label=label,
                marker="o" if len(ys) < 3 else "",
            )
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=ink)
        axes.set_xlabel("step", color=ink)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.tick_params(colors=ink, length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        for side in axes.spines.values():
            side.set_visible(False)
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
