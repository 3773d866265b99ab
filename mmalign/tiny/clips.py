"""Short clips: one to three things to which two or three events happen, one after the other."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from PIL import Image

from mmalign.tiny.draw import Pixels, backdrop, corner, stamp
from mmalign.tiny.world import COLOURS, PLACES, SIZES, THEMES, Split, Thing, draw_colour, draw_kind, draw_shift, stream

EventKind = Literal["move", "appear", "vanish", "turn"]
#: Directions with their step in (row, column).
DIRECTIONS: Final = {"to the left": (0, -1), "to the right": (0, 1), "up": (-1, 0), "down": (1, 0)}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens. `detail` is the direction, the place or the new colour; empty when something vanishes."""

    kind: EventKind
    thing: Thing
    detail: str = ""

    @property
    def after(self) -> Thing | None:
        """The thing as the event leaves it; None when it is gone. A move goes as far as `thing` and its target say."""
        if self.kind == "vanish":
            return None
        return replace(self.thing, colour=self.detail) if self.kind == "turn" else self.thing


@dataclass(frozen=True, slots=True)
class Clip:
    """What a clip shows: the things at the start, the events in order, and the things after each event."""

    start: tuple[Thing, ...]
    events: tuple[Event, ...]
    states: tuple[tuple[Thing, ...], ...]
    theme: str
    tinted: bool = True
    grain: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind that can be seen at some time."""
        return frozenset(thing.kind for state in (self.start, *self.states) for thing in state)


def clip(seed: int, split: Split | str = "train", index: int = 0) -> Clip:
    """The clip of one seed and index; splits never share clips. Raises ValueError for an unknown split."""
    if split not in ("train", "pairs", "dev", "test"):
        raise ValueError(f"split is {split!r}; it must be one of train, pairs, dev, test")
    return draw_clip_from(stream("clip", split, seed, index))


def clips(num: int, seed: int = 0, split: Split | str = "train") -> list[Clip]:
    """`num` clips of one seed and split."""
    return [clip(seed, split, index) for index in range(num)]


def draw_clip_from(rng: random.Random) -> Clip:
    """Draw a clip: all things are of different kinds, so 'the fish' is always clear."""
    theme = rng.choice(tuple(THEMES))
    things: list[Thing] = []
    for place in rng.sample(PLACES, rng.randint(1, 3)):
        things.append(_new_thing(rng, theme, place, {thing.kind for thing in things}))
    start, state = tuple(things), list(things)
    named = {thing.kind for thing in things}
    events: list[Event] = []
    states: list[tuple[Thing, ...]] = []
    for _ in range(rng.randint(2, 3)):
        event, state = _draw_event(rng, theme, state, named, events)
        named.add(event.thing.kind)
        events.append(event)
        states.append(tuple(state))
    return Clip(start, tuple(events), tuple(states), theme, rng.random() < 0.75, rng.getrandbits(32))


def _new_thing(rng: random.Random, theme: str, place: str, taken: set[str]) -> Thing:
    kind = draw_kind(rng, theme, taken)
    while kind in taken:
        kind = draw_kind(rng, theme, taken)
    return Thing(kind, draw_colour(rng, kind), rng.choice(SIZES), place, draw_shift(rng))


def _targets(thing: Thing, state: list[Thing]) -> list[tuple[str, str]]:
    """(direction, place) of every move of one or two cells over free cells."""
    taken = {other.cell for other in state if other is not thing}
    found = []
    for name, (down, right) in DIRECTIONS.items():
        row, column = thing.cell
        for _ in range(2):
            row, column = row + down, column + right
            if not (0 <= row < 3 and 0 <= column < 3) or (row, column) in taken:
                break
            found.append((name, PLACES[3 * row + column]))
    return found


def _draw_event(
    rng: random.Random, theme: str, state: list[Thing], named: set[str], before: list[Event]
) -> tuple[Event, list[Thing]]:
    while True:
        kind: EventKind = rng.choices(("move", "appear", "vanish", "turn"), (4, 2, 2, 2))[0]
        if kind == "appear":
            if len(state) >= 4:
                continue
            free = [place for place in PLACES if all(thing.place != place for thing in state)]
            thing = _new_thing(rng, theme, rng.choice(free), named)
            return Event(kind, thing, thing.place), [*state, thing]
        if not state or (kind == "vanish" and len(state) < 2):
            continue
        thing = rng.choice(state)
        rest = [other for other in state if other is not thing]
        if kind == "vanish":
            return Event(kind, thing), rest
        if kind == "turn":
            colour = rng.choice([name for name in COLOURS if name != thing.colour])
            event, after = Event(kind, thing, colour), replace(thing, colour=colour)
        else:
            targets = _targets(thing, state)
            if not targets:
                continue
            direction, place = rng.choice(targets)
            event, after = Event(kind, thing, direction), replace(thing, place=place)
        if any((old.kind, old.thing.kind, old.detail) == (event.kind, thing.kind, event.detail) for old in before):
            continue
        return event, [*rest, after]


def frames(clip: Clip, num: int = 8) -> list[Pixels]:
    """The clip as `num` frames (64, 64, 3). The first eighth shows the start, the last one the end."""
    ground = backdrop(clip.theme if clip.tinted else None, clip.grain)
    return [_frame(clip, (at - num / 8) / (0.75 * num) * len(clip.events), ground) for at in range(num)]


def _frame(clip: Clip, phase: float, ground: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Pixels:
    """One frame; `phase` counts events: 1.5 is the middle of the second."""
    canvas = ground.copy()
    now = min(max(int(phase), 0), len(clip.events))
    part = min(max(phase - now, 0.0), 1.0)
    state = clip.states[now - 1] if now else clip.start
    if now < len(clip.events) and part > 0:
        event, following = clip.events[now], clip.states[now]
        if event.kind == "move":
            target = next(thing for thing in following if thing.kind == event.thing.kind)
            (top, left), (bottom, right) = corner(event.thing), corner(target)
            for thing in state:
                if thing.kind != event.thing.kind:
                    stamp(canvas, thing, *corner(thing))
            stamp(canvas, target, round(top + part * (bottom - top)), round(left + part * (right - left)))
            state = ()
        elif part >= 0.4:
            state = following
    for thing in state:
        stamp(canvas, thing, *corner(thing))
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def draw_clip(clip: Clip, num: int = 8) -> list[Image.Image]:
    """The clip as `num` PIL pictures, RGB, 64x64."""
    return [Image.fromarray(frame) for frame in frames(clip, num)]
