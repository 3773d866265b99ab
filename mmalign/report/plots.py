"""Training curves as small SVG pictures, each in a light and a dark version, with a text that says what it shows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmalign.report.curves import (
    CURVES,
    Curve,
    Points,
    Steps,
    displacement,
    in_order,
    new_stages,
    points,
    terms_of_a_sum,
)


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as two SVG data URLs. `alt` says in words what the lines do, `note` what is to be seen in them."""

    title: str
    alt: str
    light: str
    dark: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a plot: text, grid, and one per line."""

    ink: str
    grid: str
    lines: tuple[str, ...]


LIGHT: Final = Theme("#1d2433", "#d9dee8", ("#1d5fd1", "#b4480f", "#137a4c", "#8a3fb0", "#7a6410", "#5b6478"))
DARK: Final = Theme("#dfe5f1", "#364158", ("#7fb0ff", "#f2a36b", "#6fd6a4", "#d79bf2", "#e0c965", "#aab4c8"))
#: Line styles, so that lines are told apart without colours too.
STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 2)))


def training_curves(steps: Steps, curves: Sequence[Curve] = CURVES) -> list[Plot]:
    """One plot per quantity of `curves` that `metrics.jsonl` holds; what is absent or never finite is left out.

    The terms of a sum have a plot of their own behind the loss.
    """
    steps = in_order(steps)
    shown = [*curves[:1], *([terms_of_a_sum(steps)] if curves is CURVES else []), *curves[1:]]
    plots = []
    for curve in shown:
        lines = [(label, found) for key, label in curve.metrics if (found := points(steps, key))]
        if lines:
            light, dark = (_draw(lines, curve, theme, new_stages(steps)) for theme in (LIGHT, DARK))
            note = displacement(steps) if "logps_change" in curve.metrics[0][0] else ""
            plots.append(Plot(curve.title, _alt(lines, steps), light, dark, note))
    return plots


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value with `reach` neighbours on both sides, fewer at the ends; a running mean would lag."""
    parts = (values[max(place - reach, 0) : place + reach + 1] for place in range(len(values)))
    return [math.fsum(part) / len(part) for part in parts]


def _alt(lines: Sequence[tuple[str, Points]], steps: Steps) -> str:
    parts = []
    for label, found in lines:
        values = [y for _, y in found]
        parts.append(
            f"{label} from {values[0]:.3g} to {values[-1]:.3g}, lowest {min(values):.3g}, highest {max(values):.3g}"
        )
    parts += [f"a new stage from step {step:.0f}" for step in new_stages(steps)]
    return f"{'; '.join(parts)}; steps {steps[0]['step']:.0f} to {steps[-1]['step']:.0f}."


def _draw(lines: Sequence[tuple[str, Points]], curve: Curve, theme: Theme, stages: Sequence[float]) -> str:
    ink = theme.ink
    with rc_context({"svg.hashsalt": "mmalign", "svg.fonttype": "path", "font.size": 9, "text.color": ink}):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        if curve.idle is not None:
            axes.axhline(curve.idle, color=ink, linewidth=0.8, linestyle=":", alpha=0.7)
        for step in stages:
            axes.axvline(step, color=ink, linewidth=0.8, linestyle="--", alpha=0.5)
        for (label, found), colour, style in zip(lines, cycle(theme.lines), cycle(STYLES), strict=False):
            xs, ys = [x for x, _ in found], [y for _, y in found]
            reach = len(ys) // 12 if curve.smoothed else 0
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
        if curve.loss and curve.idle is not None:
            xs, ys = [x for x, _ in lines[0][1]], [min(y, curve.idle) for _, y in lines[0][1]]
            axes.fill_between(xs, ys, curve.idle, color=theme.lines[0], alpha=0.15, linewidth=0)
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
