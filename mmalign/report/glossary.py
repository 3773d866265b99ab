"""What the numbers are called on the page, what they mean in plain words, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the result table. `better` is "low", "high" or "" where neither is; shares are shown in percent,
    other values with `digits` decimals or, without that, three significant digits.
    """

    label: str
    meaning: str = ""
    better: Literal["low", "high", ""] = ""
    is_share: bool = False
    digits: int | None = None

    def show(self, value: float) -> str:
        """The value as it stands in the table."""
        if self.is_share:
            return f"{100 * value:.1f}\u00a0%"
        return f"{value:.3g}" if self.digits is None else f"{value:.{self.digits}f}"

    def show_spread(self, std: float) -> str:
        """A standard deviation in the metric's unit."""
        if self.is_share:
            return f"{100 * std:.1f}"
        return f"{std:.2g}" if self.digits is None else f"{std:.{self.digits}f}"


METRICS: Final[dict[str, Metric]] = {
    "chair_s": Metric(
        "Answers with a false object (CHAIR_s)",
        "share of answers that name at least one thing that is not in the picture",
        "low",
        True,
    ),
    "chair_i": Metric("False mentions (CHAIR_i)", "share of the named things that are not in the picture", "low", True),
    "recall": Metric("Recall", "share of the things in the picture that the answer names", "high", True),
    "mentions": Metric("Mentions per answer", "how many things an answer names on average, repeats included", digits=2),
    "words": Metric("Words per answer", "length of the answers", digits=1),
    "colour": Metric("Colour accuracy", "share of right colours among the things that are there", "high", True),
    "place": Metric("Place accuracy", "share of right places among the things that are there", "high", True),
    "event_chair_s": Metric(
        "Answers with a false event (event CHAIR_s)",
        "share of answers that tell of at least one event that does not happen in the clip",
        "low",
        True,
    ),
    "event_chair_i": Metric(
        "False events (event CHAIR_i)", "share of the told events that do not happen in the clip", "low", True
    ),
    "event_recall": Metric("Event recall", "share of the clip's events that the answer tells", "high", True),
    "events": Metric("Events per answer", "how many events an answer tells on average, repeats included", digits=2),
    "order": Metric(
        "Order accuracy",
        "share of pairs of true events that are told in the order in which they happen",
        "high",
        True,
    ),
    "accuracy": Metric("Accuracy", "share of right answers", "high", True),
}


def metric(name: str) -> Metric:
    """The metric of a column; an unknown column is shown under its own name, without a direction."""
    return METRICS.get(name) or Metric(name)


def percent(share: float) -> str:
    """A share for running text: '47 %', with one decimal below 10 % and above 99 %."""
    value = 100 * share
    digits = 0 if 9.95 <= value < 99 or value in (0, 100) else 1
    return f"{value:.{digits}f}\u00a0%"
