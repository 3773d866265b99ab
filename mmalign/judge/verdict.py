"""From yes/no probabilities to verdicts on claims, and from verdicts to one score (self_consistency, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mmalign.judge.claims import Claim
from mmalign.types import Choice, Row

Label = Literal["consistent", "inconsistent", "ignored", "invalid"]
Score = Literal["count", "rate", "soft", "min_logp"]
#: The smallest difference that makes a pair, by kind of score: one claim, a fifth, half a claim, one nat.
MIN_GAP: Final[dict[Score, float]] = {"count": 1.0, "rate": 0.2, "soft": 0.5, "min_logp": 1.0}
_FLOOR: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says of a claim. `p_yes` is P(yes) over yes and no; `mass` is what the two had of 1."""

    claim: Claim
    p_yes: float
    mass: float
    label: Label

    @property
    def p_ok(self) -> float:
        """The probability of the answer that agrees with the claim."""
        return self.p_yes if self.claim.expected == "yes" else 1.0 - self.p_yes

    def to_row(self) -> Row:
        p_yes = None if self.label == "invalid" else self.p_yes
        return {**self.claim.to_row(), "p_yes": p_yes, "mass": self.mass, "label": self.label}


def verdict(claim: Claim, choice: Choice, *, band: float = 0.1, min_mass: float = 0.1) -> Verdict:
    """Judge a claim by the model's answer; `choice` has the probabilities of yes and of no.

    Answers within `band` of .5 are ignored; where yes and no together had less than `min_mass`, the model did not
    answer the question at all and the verdict is invalid.
    """
    p_yes = choice.probabilities[0]
    if not choice.mass >= min_mass or not math.isfinite(p_yes):
        return Verdict(claim, 0.5, choice.mass if math.isfinite(choice.mass) else 0.0, "invalid")
    agreement = p_yes if claim.expected == "yes" else 1.0 - p_yes
    label: Label = "ignored"
    if agreement > 0.5 + band:
        label = "consistent"
    elif agreement < 0.5 - band:
        label = "inconsistent"
    return Verdict(claim, p_yes, choice.mass, label)


def score(
    verdicts: Sequence[Verdict], kind: Score = "count", *, missing: int = 0, miss_penalty: float = 0.0
) -> float | None:
    """One number for an answer, higher is better; None where no claim was judged (saying nothing is not perfect).

    count: minus the inconsistent claims (RLAIF-V). rate: consistent of judged. soft: minus the summed doubt 1 - p_ok.
    min_logp: log p_ok of the worst claim. Each of `missing` things costs `miss_penalty`.
    """
    consistent = sum(verdict.label == "consistent" for verdict in verdicts)
    inconsistent = sum(verdict.label == "inconsistent" for verdict in verdicts)
    if not consistent + inconsistent:
        return None
    valid = [verdict.p_ok for verdict in verdicts if verdict.label != "invalid"]
    values: dict[Score, float] = {
        "count": float(-inconsistent),
        "rate": consistent / (consistent + inconsistent),
        "soft": -sum(1.0 - p_ok for p_ok in valid),
        "min_logp": math.log(max(min(valid), _FLOOR)),
    }
    return values[kind] - miss_penalty * missing


def reason(verdicts: Sequence[Verdict], missing: Sequence[str] = ()) -> str:
    """Why the score is what it is, for a reader."""
    parts = []
    for given in verdicts:
        if given.label == "inconsistent":
            what = "denied" if given.claim.expected == "yes" else "affirmed"
            parts.append(f"{what} by the model: '{given.claim.text}' P(yes)={given.p_yes:.2f}")
    if missing:
        parts.append(f"leaves out what the model lists: {', '.join(missing)}")
    agreed = sum(given.label == "consistent" for given in verdicts)
    return (
        "; ".join(parts) or f"the model agrees with {'all ' if agreed == len(verdicts) else ''}{agreed} of its claims"
    )
