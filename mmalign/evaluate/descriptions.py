"""Measure descriptions against what is in the picture, and cut them for the length control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmalign.evaluate.chair import chair
from mmalign.evaluate.items import Item
from mmalign.text.objects import Vocabulary
from mmalign.tiny import mentions as scene_mentions


@dataclass(frozen=True, slots=True)
class Named:
    """An object that an answer names: its characters in the text, and the colour and place it gives, if any."""

    name: str
    start: int
    end: int
    colour: str | None = None
    place: str | None = None


Reader = Callable[[str], list[Named]]


def read_scene(text: str) -> list[Named]:
    """Reader of the drawn world's language."""
    return [Named(found.kind, found.start, found.end, found.colour, found.place) for found in scene_mentions(text)]


def reader_of(vocabulary: Vocabulary) -> Reader:
    """Reader of any text: the vocabulary's objects, without attributes."""
    return lambda text: [Named(found.name, found.start, found.end) for found in vocabulary.mentions(text)]


def measure(texts: Sequence[str], items: Sequence[Item], read: Reader) -> dict[str, float]:
    """CHAIR_i, CHAIR_s, recall, mentions and words per answer; colour and place accuracy where they are known.

    Colour accuracy is taken over mentions of objects that are there and whose colour the answer gives; a mention is
    right when some object of that name has the colour. Place accuracy likewise.
    """
    named = [read(text) for text in texts]
    scores = chair([[found.name for found in answer] for answer in named], [item.objects for item in items])
    values = {
        "chair_i": scores.chair_i,
        "chair_s": scores.chair_s,
        "recall": scores.recall,
        "mentions": scores.mentions,
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }
    there = [
        (found, item)
        for answer, item in zip(named, items, strict=True)
        for found in answer
        if found.name in item.objects
    ]
    colours = [found.colour in item.colours[found.name] for found, item in there if found.colour and item.colours]
    places = [found.place in item.places[found.name] for found, item in there if found.place and item.places]
    if colours:
        values["colour"] = sum(colours) / len(colours)
    if places:
        values["place"] = sum(places) / len(places)
    return values


def cut(text: str, mentions: int, read: Reader) -> str:
    """The beginning of `text` up to the end of the sentence that holds its mention number `mentions`; "" for 0."""
    if mentions <= 0:
        return ""
    named = read(text)
    if len(named) <= mentions:
        return text
    start_of_next = named[mentions - 1].end
    stop = text.find(".", start_of_next)
    cut_at = len(text) if stop < 0 else stop + 1
    if named[mentions].end <= cut_at:  # two mentions in one sentence: cut inside it
        cut_at = start_of_next
    return text[:cut_at].rstrip()


def shortened(texts: Sequence[str], mean_mentions: float, read: Reader) -> list[str]:
    """The texts, each cut after the same number of mentions, so that they make `mean_mentions` on average.

    No text is cut at a place that depends on its picture: the cap is one number, or two neighbouring ones, the larger
    of which goes to an evenly spread share of the texts that are long enough for it to matter. Texts that make fewer
    mentions than wanted altogether come back whole.
    """
    lengths = [len(read(text)) for text in texts]

    def mean_at(cap: int) -> float:
        return sum(min(length, cap) for length in lengths) / len(lengths)

    cap = next((cap for cap in range(max(lengths, default=0)) if mean_at(cap + 1) > mean_mentions), max(lengths))
    longer = [index for index, length in enumerate(lengths) if length > cap]
    wanted = round((mean_mentions - mean_at(cap)) * len(lengths))
    one_more = {longer[position * len(longer) // wanted] for position in range(min(wanted, len(longer)))}
    return [cut(text, cap + (index in one_more), read) for index, text in enumerate(texts)]
