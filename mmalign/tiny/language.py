"""The toy language: captions of a scene in several styles, and reading a caption back into what it mentions.

Descriptions asked for with a detail prompt are *trained to hallucinate*: late in the text they add a thing that is
typical of the theme but absent, more often when little is there. The answers to questions stay true, so the model knows
better than it tells: the gap that self-alignment closes.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, Literal

from mmalign.text import prompts
from mmalign.tiny.world import (
    COLOURS,
    KINDS,
    PLACES,
    THEMES,
    WEIGHTS,
    Scene,
    Thing,
    draw_colour,
    draw_shift,
)

Style = Literal["detail", "step", "imagine", "brief", "list"]

#: How likely a 'detail' caption adds an absent thing, by the number of things that are there.
SLIP: Final = {2: 0.8, 3: 0.62, 4: 0.47, 5: 0.3, 6: 0.2}
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Mention:
    """One thing named in a text: its kind, what the text says of it (None: nothing), and the characters it spans."""

    kind: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    start: int = 0
    end: int = 0


def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_MENTION: Final = re.compile(
    rf"(?:\b(?P<size>small|big)\s+)?(?:\b(?P<colour>{_any_of(tuple(COLOURS))})\s+)?\b(?P<kind>{_any_of(KINDS)})(?:e?s)?\b"
    rf"(?:\s+(?:is\s+)?(?P<place>{_any_of(PLACES)})\b)?",
    re.IGNORECASE,
)


def mentions(text: str) -> list[Mention]:
    """Every thing that a text names, in reading order. Words outside the toy language are passed over."""

    def lower(found: str | None) -> str | None:
        return found and found.lower()

    return [
        Mention(
            found["kind"].lower(),
            lower(found["colour"]),
            lower(found["size"]),
            lower(found["place"]),
            found.start(),
            found.end(),
        )
        for found in _MENTION.finditer(text)
    ]


def a(words: str) -> str:
    """The words with their indefinite article: 'an orange fish'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(thing: Thing, *, size: bool = True, colour: bool = True, place: bool = True) -> str:
    """'a big red fish at the top', with the parts that are asked for."""
    words = [thing.size] * size + [thing.colour] * colour + [thing.kind]
    return a(" ".join(words)) + (f" {thing.place}" if place else "")


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def listed(parts: list[str]) -> str:
    """'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def imagined(scene: Scene, rng: random.Random, taken: frozenset[str] | set[str] = frozenset()) -> Thing:
    """A thing that is not in the picture but would fit: typical of the theme where one is left, on a free place."""
    typical = [kind for kind in scene.absent_typical() if kind not in taken]
    if typical:
        kind = rng.choices(typical, [WEIGHTS[THEMES[scene.theme].index(kind)] for kind in typical])[0]
    else:
        kind = rng.choice([kind for kind in scene.absent() if kind not in taken])
    free = [place for place in PLACES if scene.at(place) is None]
    size: Literal["small", "big"] = "small" if rng.random() < 0.8 else "big"
    return Thing(kind, draw_colour(rng, kind), size, rng.choice(free), draw_shift(rng))


def told(scene: Scene, style: Style, rng: random.Random, slip: float = 1.0) -> tuple[Thing, ...]:
    """The things that a caption of this style names, in its order: the true ones, and those it makes up.

    `slip` multiplies how often a 'detail' caption adds an absent thing.
    """
    things = list(scene.in_order())
    if style == "detail":
        if rng.random() < slip * SLIP[min(max(len(things), 2), 6)]:
            things.insert(len(things) - (rng.random() < 0.15), imagined(scene, rng))
    elif style == "imagine":
        made_up: list[Thing] = []
        for _ in range(rng.choice((1, 1, 2))):
            made_up.append(imagined(scene, rng, {thing.kind for thing in made_up}))
        things += made_up
    elif style == "brief":
        things = things[:3]
        if len(things) == len(scene.objects) and rng.random() < 0.6 * SLIP[len(things)]:
            things[-1:] = [*things[-1:], imagined(scene, rng)][: 4 - len(things)]
    return tuple(things)


def write(things: tuple[Thing, ...], style: Style) -> str:
    """The caption that names these things in this order."""
    if style == "brief":
        return sentence("there is " + listed([phrase(thing, size=False, place=False) for thing in things]))
    if style == "list":
        return sentence(listed([a(kind) for kind in dict.fromkeys(thing.kind for thing in things)]))
    if style == "step":
        openings = ["First, there is", *["Then there is"] * (len(things) - 2), "Last, there is"][-len(things) :]
    else:
        openings = ["There is", *["There is also"] * (len(things) - 1)]
    return " ".join(f"{opening} {phrase(thing)}." for opening, thing in zip(openings, things, strict=True))


def caption(scene: Scene, style: Style, rng: random.Random, slip: float = 1.0) -> str:
    """A caption of a scene. 'step' and 'list' are always true; 'imagine' never is; 'detail' and 'brief' slip."""
    return write(told(scene, style, rng, slip), style)


def request(style: Style, rng: random.Random) -> str:
    """A prompt that asks for this style, from the pools that the methods use."""
    if style == "step":
        return prompts.STEP_BY_STEP
    if style == "imagine":
        return rng.choice(prompts.IMAGINE)
    if style == "brief":
        return rng.choice(prompts.BRIEF)
    if style == "list":
        return prompts.LIST_OBJECTS
    return prompts.DETAIL[0] if rng.random() < 0.4 else rng.choice(prompts.DETAIL[1:] + prompts.PLAIN)
