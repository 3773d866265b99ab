"""Pure arithmetic of the evaluation: hallucination and recall of captions against the truth, AUC, shares."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.tiny.language import mentions
from mmalign.tiny.world import Scene

Figures = dict[str, float]


def share(right: Sequence[bool]) -> float:
    """The part that is true, rounded to four places; nan when there is none."""
    return round(sum(right) / len(right), 4) if right else float("nan")


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """How often a positive scores above a negative; ties count half."""
    wins = sum((one > two) + 0.5 * (one == two) for one in positive for two in negative)
    return round(wins / (len(positive) * len(negative)), 4)


def false_kinds(scene: Scene, text: str) -> list[str]:
    """The mentioned kinds that are not in the picture, in reading order."""
    return [mention.kind for mention in mentions(text) if mention.kind not in scene.kinds]


def caption_figures(scenes: Sequence[Scene], texts: Sequence[str]) -> Figures:
    """How true captions are to their scenes.

    CHAIR_i (share of mentions that are false), CHAIR_s (share of captions with one), recall of kinds, accuracy of the
    colours and places of things that are there exactly once, and mentions per caption.
    """
    said = [mentions(text) for text in texts]
    false = [[mention.kind not in scene.kinds for mention in named] for scene, named in zip(scenes, said, strict=True)]
    flat = [wrong for row in false for wrong in row]
    recall = [
        kind in {mention.kind for mention in named}
        for scene, named in zip(scenes, said, strict=True)
        for kind in sorted(scene.kinds)
    ]
    colour, place = [], []
    for scene, named in zip(scenes, said, strict=True):
        for mention in named:
            thing = scene.only(mention.kind)
            if thing and mention.colour:
                colour.append(mention.colour == thing.colour)
            if thing and mention.place:
                place.append(mention.place == thing.place)
    return {
        "chair_i": share(flat),
        "chair_s": share([any(row) for row in false]),
        "recall": share(recall),
        "colour": share(colour),
        "place": share(place),
        "mentions": round(len(flat) / max(len(texts), 1), 3),
    }


def false_by_position(scenes: Sequence[Scene], texts: Sequence[str], last: int = 7) -> list[float]:
    """Share of false mentions at the 1st, 2nd, ... mention of a caption."""
    rows = [
        [mention.kind not in scene.kinds for mention in mentions(text)]
        for scene, text in zip(scenes, texts, strict=True)
    ]
    return [share([row[at] for row in rows if len(row) > at]) for at in range(last)]
