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


@dataclass(frozen=True, slots=True)
class Subject:
    """What answers are wrong about: the columns that say so, and the words for it.

    `false`, `recall`, `told` and `order` are columns: answers with a false mention, the share of what is there that is
    told, how much an answer tells, and the share told in the right order ("" where there is none).
    """

    false: str
    recall: str
    told: str
    order: str
    slips: str
    tells: str
    mistake: str
    said: str
    things: str
    unit: str
    elsewhere: str


SUBJECTS: Final = (
    Subject(
        false="chair_s",
        recall="recall",
        told="mentions",
        order="",
        slips="named something that is not in the picture",
        tells="named {} of the things that are there",
        mistake="a false object",
        said="name",
        things="things",
        unit="pictures",
        elsewhere="counts, relations, reading",
    ),
    Subject(
        false="event_chair_s",
        recall="event_recall",
        told="events",
        order="order",
        slips="told of an event that does not happen in the clip",
        tells="told {} of the events that happen",
        mistake="a false event",
        said="tell",
        things="events",
        unit="clips",
        elsewhere="objects, counts, how long something takes",
    ),
)

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
    for subject in SUBJECTS:
        if before.values.get(subject.false) and after.values.get(subject.false):
            return _of_chair(subject, evaluation, lines, before, after)
    return _of_any(evaluation, before, after)


def _of_chair(subject: Subject, evaluation: Evaluation, lines: list[Line], before: Line, after: Line) -> Account:
    was, now = _spread(before, subject.false), _spread(after, subject.false)
    num = evaluation.num_scenes
    drop, error = was.mean - now.mean, _error(was, now, num)
    sentence = (
        f"Before training, the model {subject.slips} in {percent(was.mean)} of its "
        f"descriptions; after training, in {percent(now.mean)}"
    )
    recall_was, recall_now = before.values.get(subject.recall), after.values.get(subject.recall)
    order_was, order_now = before.values.get(subject.order), after.values.get(subject.order)
    loss = order_loss = 0.0
    if recall_was and recall_now:
        loss = recall_was.mean - recall_now.mean
        tells = subject.tells.format(percent(recall_now.mean))
        sentence += f", while it {tells} (recall), {percent(recall_was.mean)} before"
    if order_was and order_now:
        order_loss = order_was.mean - order_now.mean
        sentence += f"; it told {percent(order_now.mean)} of their pairs in order, {percent(order_was.mean)} before"
    verdict: Verdict = "better" if drop > CLEAR * error else "worse" if -drop > CLEAR * error else "same"
    if max(loss, order_loss) > RECALL_LOSS:
        verdict = "trade" if verdict == "better" else "worse"
    told = Account(verdict, HEADLINES[verdict], sentence + ".")
    _tell_size(told, subject, evaluation, was, drop, error)
    _tell_controls(told, subject, lines, after, num)
    _tell_limits(told, subject, before, after, loss)
    return told


def _tell_size(told: Account, subject: Subject, evaluation: Evaluation, was: Spread, drop: float, error: float) -> None:
    steps = changes(evaluation, subject.false)
    if len(steps) > 1:
        down = sum(step < 0 for step in steps)
        told.shows.append(
            f"The share of descriptions with {subject.mistake} went down on {down} of {len(steps)} seeds."
        )
    else:
        told.not_shown.append(
            "How much the numbers change from seed to seed: only one seed was measured. "
            "Run the recipe with other values of `seed` to see it."
        )
    if math.isfinite(error) and evaluation.num_scenes:
        points = 100 * share_error(was.mean, evaluation.num_scenes)
        told.shows.append(
            f"Each number comes from {evaluation.num_scenes:,} {subject.unit}, so a share of {percent(was.mean)} is "
            f"known to about ±{points:.1f} points (one standard error); the change of {100 * abs(drop):.1f} points is "
            f"{abs(drop) / error:.1f} standard errors."
        )


def _tell_controls(told: Account, subject: Subject, lines: list[Line], after: Line, num: int) -> None:
    now, recall_now = _spread(after, subject.false), after.values.get(subject.recall)
    controls = [line for line in lines if line.kind == "control" and line.values.get(subject.false)]
    if told.verdict not in ("better", "trade"):
        told.not_shown.append("That training on these pairs helps.")
        return
    for line in controls:
        value, recall = _spread(line, subject.false), line.values.get(subject.recall)
        numbers = f"{percent(value.mean)} of its descriptions have {subject.mistake}"
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


def _tell_limits(told: Account, subject: Subject, before: Line, after: Line, loss: float) -> None:
    said_was, said_now = before.values.get(subject.told), after.values.get(subject.told)
    if said_was and said_now and said_now.mean < 0.97 * said_was.mean:
        text = (
            f"How much comes from saying less: answers now {subject.said} "
            f"{said_now.mean:.1f} {subject.things} instead of {said_was.mean:.1f}"
        )
        text += f", and recall fell by {100 * loss:.1f} points" if loss > 0 else ""
        told.not_shown.append(f"{text}. A control cut to the same length shows how far that alone goes.")
    told.not_shown.append(
        f"How the model does elsewhere: the numbers hold for this prompt and for {subject.unit} like these; other "
        f"prompts, other {subject.unit} and other mistakes ({subject.elsewhere}) are not measured here."
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
