"""Measure what answers tell of a clip against what happens in it: false events, missed events, wrong order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from mmalign.evaluate.chair import chair
from mmalign.evaluate.descriptions import Named, Reader
from mmalign.evaluate.items import Item
from mmalign.tiny import told_events


def read_events(text: str) -> list[Named]:
    """Reader of the drawn clips' language: each event under its clause, such as 'the fish moves up'."""
    return [Named(found.clause, found.start, found.end) for found in told_events(text)]


def measure_events(texts: Sequence[str], items: Sequence[Item], read: Reader) -> dict[str, float]:
    """Event hallucination, event recall, order accuracy, events and words per answer.

    `event_chair_i` is the share of told events that do not happen, `event_chair_s` that of answers with one. `order` is
    the share, over all answers, of pairs of true events told in the order in which they happen; it is left out where no
    answer tells two of them.
    """
    told = [[found.name for found in read(text)] for text in texts]
    scores = chair(told, [item.events for item in items])
    values = {
        "event_chair_i": scores.chair_i,
        "event_chair_s": scores.chair_s,
        "event_recall": scores.recall,
        "events": scores.mentions,
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }
    in_order = [
        first < second
        for names, item in zip(told, items, strict=True)
        for first, second in combinations(_places(names, item.events), 2)
    ]
    if in_order:
        values["order"] = sum(in_order) / len(in_order)
    return values


def _places(names: Sequence[str], events: Sequence[str]) -> list[int]:
    """Which of the events an answer tells, by their place in the clip, in the order of the answer."""
    return [events.index(name) for name in dict.fromkeys(names) if name in events]
