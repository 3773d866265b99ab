"""What the panels of a training show: which metrics stand together, and what a reader should not miss in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

Steps = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """What one panel shows: the metrics drawn in it, with their names, and a level that means 'nothing learned'.

    With `smoothed` a mean over neighbours is drawn over the numbers themselves. What the first line lies below the
    idle level is filled where that is a `loss`.
    """

    title: str
    metrics: tuple[tuple[str, str], ...]
    idle: float | None = None
    smoothed: bool = True
    loss: bool = False


_CHANGES: Final = (
    ("chosen_logps_change", "chosen"),
    ("rejected_logps_change", "rejected"),
    ("best_logps_change", "best"),
    ("worst_logps_change", "worst"),
)
CURVES: Final = (
    Curve("Loss", (("loss", "loss"),)),
    Curve("Accuracy: chosen ranked above rejected", (("accuracy", "accuracy"),), idle=0.5),
    Curve("Margin: chosen minus rejected reward", (("margin", "margin"),), idle=0.0),
    Curve("Log-probability change since the start", _CHANGES, idle=0.0, loss=True),
    Curve(
        "Log-probability of the answers",
        tuple((f"{side}_logps", side) for side in ("chosen", "rejected", "best", "worst")),
    ),
    Curve("KL divergence of an answer", (("kl", "KL"), ("first_kl", "first turn"), ("second_kl", "second turn"))),
    Curve(
        "KL divergence per token",
        (
            ("kl_per_token", "KL"),
            ("chosen_kl", "chosen"),
            ("rejected_kl", "rejected"),
            ("kl_to_old", "since sampling"),
            ("first_kl_to_old", "first turn"),
            ("second_kl_to_old", "second turn"),
        ),
    ),
    Curve(
        "Share of clipped tokens",
        (("clip_share", "clipped"), ("first_clip_share", "first turn"), ("second_clip_share", "second turn")),
    ),
    Curve("Mean reward", (("reward", "reward"), ("first_reward", "first turn"), ("second_reward", "second turn"))),
    Curve("Scores of the head", (("chosen_score", "chosen"), ("rejected_score", "rejected"))),
    Curve("Negative log-likelihood per token", (("nll", "chosen"), ("judged_nll", "judged"))),
    Curve("Gradient norm", (("grad_norm", "gradient norm"),)),
    Curve("Learning rate", (("lr", "learning rate"),), smoothed=False),
)

#: Of control trainings: what tells whether their pairs could be learned at all.
CONTROL_CURVES: Final = CURVES[:3]

#: More steps than this are averaged into as many bins.
MOST_POINTS: Final = 400
#: A text has gained or lost probability where its change is more than this, in nats.
NOTEWORTHY: Final = 0.1


def in_order(steps: Steps) -> list[Mapping[str, float]]:
    """The steps as one curve: a step that was done again after an interruption counts as it was done last."""
    last = {row["step"]: row for row in steps}
    return [last[step] for step in sorted(last)]


def points(steps: Steps, key: str) -> Points:
    """Steps and values of a metric where it is a finite number, thinned to at most `MOST_POINTS`."""
    found = [(row["step"], row[key]) for row in steps if math.isfinite(row.get(key, math.nan))]
    size = math.ceil(len(found) / MOST_POINTS) or 1
    bins = [found[start : start + size] for start in range(0, len(found), size)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in bins]


def terms_of_a_sum(steps: Steps) -> Curve:
    """The losses of the terms of a sum, each by its name."""
    names = dict.fromkeys(key for row in steps for key in row if key.endswith("/loss"))
    return Curve("Loss of each term", tuple((name, name.removesuffix("/loss")) for name in names))


def new_stages(steps: Steps) -> list[float]:
    """Where a new stage of the training begins."""
    return [row["step"] for before, row in pairwise(steps) if row.get("stage", 0) != before.get("stage", 0)]


def displacement(steps: Steps) -> str:
    """A sentence on likelihood displacement: whether the better texts lost probability too, at the end of a training.

    The end is the last tenth of the steps. Empty where both changes are not known.
    """
    tail = steps[-max(1, len(steps) // 10) :]
    for better, worse in ((_CHANGES[0], _CHANGES[1]), (_CHANGES[2], _CHANGES[3])):
        ends = []
        for key, _ in (better, worse):
            values = [row[key] for row in tail if math.isfinite(row.get(key, math.nan))]
            ends.append(math.fsum(values) / len(values) if values else math.nan)
        good, bad = ends
        if math.isnan(good) or math.isnan(bad):
            continue
        told = f"{better[1]} texts {_moved(good)}, {worse[1]} ones {_moved(bad)}".capitalize()
        if good < -NOTEWORTHY and good > bad:
            return f"{told}: likelihood displacement, the margin grows because the {worse[1]} ones lose more."
        if good < -NOTEWORTHY:
            return f"{told}: the {better[1]} ones lose more than the {worse[1]} ones."
        return f"{told}."
    return ""


def _moved(change: float) -> str:
    if abs(change) <= NOTEWORTHY:
        return "stayed where they were"
    return f"{'gained' if change > 0 else 'lost'} {abs(change):.3g} nats"
