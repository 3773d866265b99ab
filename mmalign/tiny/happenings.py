"""The toy language about clips: captions that tell events in order, and questions about them with true answers."""

from __future__ import annotations

import random
from dataclasses import replace

from mmalign.tiny.clips import DIRECTIONS, Clip, Event
from mmalign.tiny.language import Style, a, listed, phrase, request, sentence
from mmalign.tiny.questions import CAPTION_WEIGHT, Turn, is_there, is_true, other
from mmalign.tiny.world import COLOURS, KINDS, PLACES, THEMES, Thing, draw_scene_from


def clause(event: Event) -> str:
    """'the fish moves to the right'."""
    kind = event.thing.kind
    if event.kind == "move":
        return f"the {kind} moves {event.detail}"
    if event.kind == "appear":
        return f"{phrase(event.thing, size=False, place=False)} appears {event.detail}"
    if event.kind == "vanish":
        return f"the {kind} disappears"
    return f"the {kind} turns {event.detail}"


def tell(start: tuple[Thing, ...], events: tuple[Event, ...], *, setting: bool = True) -> str:
    """The caption of a start and its events, in order."""
    openings = ["First", *["Then"] * (len(events) - 2), "Finally"][-len(events) :] if len(events) > 1 else ["First"]
    told = [f"{opening} {clause(event)}." for opening, event in zip(openings, events, strict=True)]
    if setting:
        told.insert(0, f"At the start there is {listed([phrase(thing, size=False) for thing in start])}.")
    return " ".join(told)


def extra(clip: Clip, rng: random.Random) -> Event:
    """An event that does not happen but could."""
    while True:
        event = wrong(clip, rng.choice(clip.events), rng)
        if all(clause(event) != clause(seen) for seen in clip.events):
            return event


def wrong(clip: Clip, event: Event, rng: random.Random) -> Event:
    """The event with its thing, direction, place, colour or kind changed; it does not happen in the clip."""
    while True:
        roll = rng.random()
        if roll < 0.4 and event.kind != "vanish":
            pool = {"move": tuple(DIRECTIONS), "appear": PLACES, "turn": tuple(COLOURS)}[event.kind]
            changed = replace(event, detail=other(rng, pool, event.detail))
        elif roll < 0.7:
            kind = rng.choice(sorted(clip.kinds)) if rng.random() < 0.7 else rng.choice(KINDS)
            changed = replace(event, thing=replace(event.thing, kind=kind))
        else:
            name = rng.choice(("move", "turn", "vanish"))
            if name == "move":
                changed = Event("move", event.thing, rng.choice(tuple(DIRECTIONS)))
            elif name == "turn":
                changed = Event("turn", event.thing, rng.choice(tuple(COLOURS)))
            else:
                changed = Event("vanish", event.thing)
        if all(clause(changed) != clause(seen) for seen in clip.events):
            return changed


def caption(clip: Clip, style: Style, rng: random.Random) -> str:
    """A caption of a clip: 'step' is always true, 'imagine' adds an event, 'detail' and 'brief' do so with .35."""
    events = clip.events
    if style == "list":
        return sentence(listed([a(kind) for kind in sorted(clip.kinds)]))
    if style == "imagine" or (style in ("detail", "brief") and rng.random() < 0.35):
        events = (*events, extra(clip, rng))
    return tell(clip.start, events, setting=style != "brief")


def about(text: str, rng: random.Random) -> str:
    """The prompt with the picture called a video or a clip (now and then left as it is)."""
    return text.replace("picture", rng.choices(("video", "clip", "picture"), (5, 3, 2))[0])


def captioning(clip: Clip, style: Style, rng: random.Random) -> Turn:
    return Turn(about(request(style, rng), rng), caption(clip, style, rng), CAPTION_WEIGHT)


def _about(turns: list[Turn], rng: random.Random) -> list[Turn]:
    return [replace(turn, ask=about(turn.ask, rng)) for turn in turns]


def existence(clip: Clip, rng: random.Random) -> list[Turn]:
    present = rng.choice(sorted(clip.kinds))
    typical = [kind for kind in THEMES[clip.theme] if kind not in clip.kinds]
    while True:
        found = typical if typical and rng.random() < 0.5 else sorted(draw_scene_from(rng).kinds - clip.kinds)
        if found:
            absent = rng.choice(found)
            return _about([is_there(a(present), True, rng), is_there(a(absent), False, rng)], rng)


def order(clip: Clip, rng: random.Random) -> list[Turn]:
    """What happens first, and last."""
    return [
        Turn("What happens first?", sentence(clause(clip.events[0]))),
        Turn("What happens last?", sentence(clause(clip.events[-1]))),
    ]


def truth(clip: Clip, rng: random.Random) -> list[Turn]:
    """An event that happens and one that does not."""
    event = rng.choice(clip.events)
    pair = [is_true(sentence(clause(event)), True, rng)]
    pair.append(is_true(sentence(clause(wrong(clip, rng.choice(clip.events), rng))), False, rng))
    return _about(pair, rng)


def before_after(clip: Clip, rng: random.Random) -> list[Turn]:
    """One event before (or after) another, told the right and the wrong way round with the same word."""
    first, second = sorted(rng.sample(range(len(clip.events)), 2))
    word = rng.choice(("before", "after"))
    early, late = clause(clip.events[first]), clause(clip.events[second])
    one, two = (early, late) if word == "before" else (late, early)
    turns = [
        is_true(sentence(f"{one} {word} {two}"), True, rng),
        is_true(sentence(f"{two} {word} {one}"), False, rng),
    ]
    return _about(turns, rng)


def caption_judging(clip: Clip, rng: random.Random) -> list[Turn]:
    """A true caption, and the same with two events swapped, one added or one changed."""
    events = list(clip.events)
    how = rng.choice(("swap", "add", "change"))
    if how == "swap":
        at = rng.randrange(len(events) - 1)
        events[at], events[at + 1] = events[at + 1], events[at]
    elif how == "add":
        events.append(extra(clip, rng))
    else:
        at = rng.randrange(len(events))
        events[at] = wrong(clip, events[at], rng)
    setting = rng.random() < 0.5
    turns = [
        is_true(tell(clip.start, clip.events, setting=setting), True, rng),
        is_true(tell(clip.start, tuple(events), setting=setting), False, rng),
    ]
    return _about(turns, rng)
