"""The page's sentences: what happened, whether it got better, what the numbers show and what they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from mmalign.report.glossary import metric, percent
from mmalign.report.stats import Evaluation, Line, Spread, changes, share_error, table

Verdict = Literal["better", "trade", "same", "worse", "unknown"]

#: Recall may fall by this much before "better" becomes "better at a price".
RECALL_LOSS: Final = 0.05
#: A difference counts as clear from this many standard errors on.
CLEAR: Final = 2.0


@dataclass(slots=True)
class Account:
    """What the top of the page says."""

    verdict: Verdict = "unknown"
    headline: str = "Not measured yet"
    summary: str = ""
    shows: list[str] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)


HEADLINES: Final[dict[Verdict, str]] = {
    "better": "It got better",
    "trade": "Better, at a price",
    "same": "No clear difference",
    "worse": "It got worse",
    "unknown": "Not measured yet",
}


def account(evaluation: Evaluation | None, num_pairs: int) -> Account:
    """The sentences for a run; without numbers before and after, only how far it came."""
    made = "No pairs have been made yet." if not num_pairs else f"{num_pairs:,} pairs have been made"
    if evaluation is None:
        tail = "" if not num_pairs else "; what training on them does to the model has not been measured."
        return Account(summary=made + tail)
    lines = table(evaluation)
    before = next((line for line in lines if line.kind == "before"), None)
    after = next((line for line in lines if line.kind == "after"), None)
    if before is None or after is None:
        lacking = "before training" if before is None else "after training"
        return Account(summary=f"The model has not been measured {lacking}, so nothing can be compared.")
    if before.values.get("chair_s") and after.values.get("chair_s"):
        return _of_chair(evaluation, lines, before, after)
    return _of_any(evaluation, before, after)


def _of_chair(evaluation: Evaluation, lines: list[Line], before: Line, after: Line) -> Account:
    was, now = _spread(before, "chair_s"), _spread(after, "chair_s")
    num = evaluation.num_scenes
    drop, error = was.mean - now.mean, _error(was, now, num)
    sentence = (
        f"Before training, the model named something that is not in the picture in {percent(was.mean)} of its "
        f"descriptions; after training, in {percent(now.mean)}"
    )
    recall_was, recall_now = before.values.get("recall"), after.values.get("recall")
    loss = 0.0
    if recall_was and recall_now:
        loss = recall_was.mean - recall_now.mean
        sentence += (
            f", while it named {percent(recall_now.mean)} of the things that are there (recall), "
            f"{percent(recall_was.mean)} before"
        )
    verdict: Verdict = "better" if drop > CLEAR * error else "worse" if -drop > CLEAR * error else "same"
    if loss > RECALL_LOSS:
        verdict = "trade" if verdict == "better" else "worse"
    told = Account(verdict, HEADLINES[verdict], sentence + ".")
    _tell_size(told, evaluation, was, drop, error)
    _tell_controls(told, lines, after, num)
    _tell_limits(told, lines, before, after, loss)
    return told


def _tell_size(told: Account, evaluation: Evaluation, was: Spread, drop: float, error: float) -> None:
    steps = changes(evaluation, "chair_s")
    if len(steps) > 1:
        down = sum(step < 0 for step in steps)
        told.shows.append(f"The share of descriptions with a false object went down on {down} of {len(steps)} seeds.")
    else:
        told.not_shown.append(
            "How much the numbers change from seed to seed: only one seed was measured. "
            "Run the recipe with other values of `seed` to see it."
        )
    if math.isfinite(error) and evaluation.num_scenes:
        points = 100 * share_error(was.mean, evaluation.num_scenes)
        told.shows.append(
            f"Each number comes from {evaluation.num_scenes:,} pictures, so a share of {percent(was.mean)} is known to "
            f"about ±{points:.1f} points (one standard error); the change of {100 * abs(drop):.1f} points is "
            f"{abs(drop) / error:.1f} standard errors."
        )


def _tell_controls(told: Account, lines: list[Line], after: Line, num: int) -> None:
    now, recall_now = _spread(after, "chair_s"), after.values.get("recall")
    controls = [line for line in lines if line.kind == "control" and line.values.get("chair_s")]
    if told.verdict not in ("better", "trade"):
        told.not_shown.append("That training on these pairs helps.")
        return
    for line in controls:
        value, recall = _spread(line, "chair_s"), line.values.get("recall")
        numbers = f"{percent(value.mean)} of its descriptions have a false object"
        if recall:
            numbers += f", recall {percent(recall.mean)}"
        margin = CLEAR * _error(value, now, num)
        keeps_more = recall is not None and recall_now is not None and recall.mean > recall_now.mean + 0.005
        name = line.name.removeprefix("control:").strip()
        if value.mean > now.mean + margin:
            extra = " It keeps more recall, so part of the gain may be paid for with recall." if keeps_more else ""
            told.shows.append(f"The trained model beats the control “{name}” ({numbers}).{extra}")
        else:
            extra = " and keeps more recall" if keeps_more else ""
            told.not_shown.append(
                f"That the pairs are what helps: the control “{name}” does as well{extra} ({numbers})."
            )
    if not controls:
        told.not_shown.append("That the pairs are what helps: no controls were run (`evaluate.controls: true`).")


def _tell_limits(told: Account, lines: list[Line], before: Line, after: Line, loss: float) -> None:
    said_was, said_now = before.values.get("mentions"), after.values.get("mentions")
    if said_was and said_now and said_now.mean < 0.97 * said_was.mean:
        text = (
            "How much comes from saying less: answers now name "
            f"{said_now.mean:.1f} things instead of {said_was.mean:.1f}"
        )
        text += f", and recall fell by {100 * loss:.1f} points" if loss > 0 else ""
        told.not_shown.append(f"{text}. A control cut to the same length shows how far that alone goes.")
    told.not_shown.append(
        "How the model does elsewhere: the numbers hold for this prompt and for pictures like these; other prompts, "
        "other pictures and other mistakes (counts, relations, reading) are not measured here."
    )


def _of_any(evaluation: Evaluation, before: Line, after: Line) -> Account:
    for name in evaluation.columns:
        was, now, known = before.values.get(name), after.values.get(name), metric(name)
        if was is None or now is None:
            continue
        told = Account(
            headline="Measured before and after",
            summary=f"{known.label}: {known.show(was.mean)} before training, {known.show(now.mean)} after.",
        )
        if known.better and known.is_share and evaluation.num_scenes:
            gain = (now.mean - was.mean) * (1 if known.better == "high" else -1)
            clear = CLEAR * _error(was, now, evaluation.num_scenes)
            told.verdict = "better" if gain > clear else "worse" if -gain > clear else "same"
            told.headline = HEADLINES[told.verdict]
        return told
    return Account(summary="The measurements hold no number that exists both before and after training.")


def _spread(line: Line, name: str) -> Spread:
    value = line.values[name]
    assert value is not None
    return value


def _error(one: Spread, other: Spread, num: int) -> float:
    """Standard error of the difference of two shares; seeds are not counted as more pictures, to stay careful."""
    return math.hypot(share_error(one.mean, num), share_error(other.mean, num))
