"""The toy language about clips: captions that tell events in order, and questions about them with true answers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmalign.text import prompts
from mmalign.tiny.clips import DIRECTIONS, Clip, Event
from mmalign.tiny.language import Style, a, listed, phrase, request, sentence
from mmalign.tiny.questions import CAPTION_WEIGHT, Turn, is_there, is_true, other, verdict
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


#: How often a 'detail' or 'brief' caption tells of an event that does not happen.
SLIP: Final = 0.5


def openings(num: int) -> list[str]:
    """The words that begin the sentences about `num` events."""
    return ["First", *["Then"] * (num - 2), "Finally"][:num] if num > 1 else ["First"]


def tell(start: tuple[Thing, ...], events: tuple[Event, ...], *, setting: bool = True) -> str:
    """The caption of a start and its events, in order."""
    told = [f"{opening} {clause(event)}." for opening, event in zip(openings(len(events)), events, strict=True)]
    return " ".join([scenery(start), *told] if setting else told)


def scenery(things: Sequence[Thing]) -> str:
    """The sentence that tells what is there before anything happens."""
    return f"At the start there is {listed([phrase(thing, size=False) for thing in things])}."


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """One event that a text tells of: its clause as `clause` writes it, and the characters it spans."""

    clause: str
    start: int
    end: int


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_TOLD: Final = re.compile(
    rf"\b(?:the|an?)\s+(?:(?:{_any_of(COLOURS)})\s+)?(?:{_any_of(KINDS)})\s+"
    rf"(?:moves\s+(?:{_any_of(DIRECTIONS)})|appears\s+(?:{_any_of(PLACES)})|disappears|turns\s+(?:{_any_of(COLOURS)}))\b",
    re.IGNORECASE,
)


def told_events(text: str) -> list[ToldEvent]:
    """Every event that a text tells of, in reading order. Words outside the toy language are passed over."""
    return [ToldEvent(" ".join(found[0].lower().split()), found.start(), found.end()) for found in _TOLD.finditer(text)]


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
    """A caption of a clip: 'step' is always true, 'imagine' adds an event, 'detail' and 'brief' do so half the time."""
    events = clip.events
    if style == "list":
        return sentence(listed([a(kind) for kind in sorted(clip.kinds)]))
    if style == "imagine" or (style in ("detail", "brief") and rng.random() < SLIP):
        events = (*events, extra(clip, rng))
    return tell(clip.start, events, setting=style != "brief")


def about(text: str, rng: random.Random) -> str:
    """The prompt with the picture called a video or a clip (now and then left as it is)."""
    return text.replace("picture", rng.choices(("video", "clip", "picture"), (5, 3, 2))[0])


def captioning(clip: Clip, style: Style, rng: random.Random) -> Turn:
    ask = rng.choice(prompts.TELL) if style == "detail" and rng.random() < 0.4 else about(request(style, rng), rng)
    return Turn(ask, caption(clip, style, rng), CAPTION_WEIGHT)


def _about(turns: Sequence[Turn], rng: random.Random) -> list[Turn]:
    return [replace(turn, ask=about(turn.ask, rng)) for turn in turns]


def existence(clip: Clip, rng: random.Random) -> list[Turn]:
    present = rng.choice(sorted(clip.kinds))
    typical = [kind for kind in THEMES[clip.theme] if kind not in clip.kinds]
    while True:
        found = typical if typical and rng.random() < 0.5 else sorted(draw_scene_from(rng).kinds - clip.kinds)
        if found:
            absent = rng.choice(found)
            return _about([is_there(a(present), True, rng), is_there(a(absent), False, rng)], rng)


def _answer(event: Event | None) -> str:
    return sentence(clause(event)) if event else "Nothing."


def ends(clip: Clip) -> list[Turn]:
    """What happens first, and last."""
    return [
        Turn("What happens first in the video?", _answer(clip.events[0])),
        Turn("What happens last in the video?", _answer(clip.events[-1])),
    ]


def neighbours(clip: Clip) -> list[Turn]:
    """What happens before and after each event."""
    turns = []
    padded = (None, *clip.events, None)
    for early, event, late in zip(padded, clip.events, padded[2:], strict=False):
        turns.append(Turn(f"What happens before {clause(event)}?", _answer(early)))
        turns.append(Turn(f"What happens after {clause(event)}?", _answer(late)))
    return turns


def fates(clip: Clip) -> list[Turn]:
    """What the things do that one event befalls."""
    kinds = [event.thing.kind for event in clip.events]
    told = [event for event in clip.events if kinds.count(event.thing.kind) == 1]
    return [Turn(f"What does the {event.thing.kind} do in the video?", _answer(event)) for event in told]


def comparison(clip: Clip, rng: random.Random) -> list[Turn]:
    """Which of two events comes first, or last."""
    first, second = sorted(rng.sample(range(len(clip.events)), 2))
    word, right = rng.choice((("first", first), ("last", second)))
    one, two = (clause(clip.events[at]) for at in rng.sample((first, second), 2))
    return [Turn(f"Which happens {word}, {one} or {two}?", _answer(clip.events[right]))]


def looks(clip: Clip) -> list[Turn]:
    """Where things are and which colours they have, at the start and at the end."""
    turns = []
    for moment, things in (("start", clip.start), ("end", clip.states[-1])):
        for thing in things:
            turns.append(Turn(f"Where is the {thing.kind} at the {moment} of the video?", sentence(thing.place)))
            turns.append(Turn(f"What colour is the {thing.kind} at the {moment} of the video?", sentence(thing.colour)))
    return turns


def order(clip: Clip, rng: random.Random) -> list[Turn]:
    """What happens first, and last; now and then in fewer words."""
    turns = ends(clip)
    if rng.random() < 0.4:
        turns = [replace(turn, ask=turn.ask.replace(" in the video", "")) for turn in turns]
    return turns


def neighbour(clip: Clip, rng: random.Random) -> list[Turn]:
    """What happens right before or after an event."""
    return [rng.choice(neighbours(clip))]


def single(clip: Clip, rng: random.Random) -> list[Turn]:
    """One short question about one thing."""
    return [rng.choice(looks(clip) if rng.random() < 0.6 else fates(clip) or looks(clip))]


def asking(clip: Clip, rng: random.Random) -> list[Turn]:
    """Questions that can be asked about the clip, three of one kind (VideoSAVi)."""
    if rng.random() < 0.5:
        pool, ask = [*ends(clip), *neighbours(clip), *fates(clip)], prompts.ASK_TEMPORAL
    else:
        pool, ask = looks(clip), prompts.ASK_SPATIAL
    number, word = rng.choice(((2, "two"), (3, "three"), (3, "three"), (4, "four")))
    asked = rng.sample(pool, min(number, len(pool)))
    return [Turn(ask.format(number=word), "\n".join(turn.ask for turn in asked), 0.5)]


def _mistaken(clip: Clip, rng: random.Random) -> tuple[Turn, str, str]:
    """A question with its answer, a wrong answer to it, and the line that names the error."""
    if rng.random() < 0.7:
        turn = rng.choice([*ends(clip), *neighbours(clip)])
        others = [_answer(event) for event in clip.events if _answer(event) != turn.answer]
        if others and rng.random() < 0.5:
            false, kind = rng.choice(others), "temporal order"
        else:
            false, kind = _answer(wrong(clip, rng.choice(clip.events), rng)), "factual"
        return turn, false, f"{kind}: {false}"
    turn = rng.choice(looks(clip))
    pool, kind = (tuple(COLOURS), "factual") if "colour" in turn.ask else (PLACES, "spatial relation")
    false = sentence(rng.choice([word for word in pool if sentence(word) != turn.answer]))
    return turn, false, f"{kind}: {false}"


def critique(clip: Clip, rng: random.Random) -> list[Turn]:
    """A right and a wrong answer are looked over, and both are mended (VideoSAVi)."""
    turn, false, line = _mistaken(clip, rng)
    turns = []
    for answer, found in ((turn.answer, "No error."), (false, line)):
        turns.append(Turn(prompts.CRITIQUE.format(question=turn.ask, answer=answer), found))
    turns.append(Turn(prompts.REVISE.format(question=turn.ask, answer=false, critique=line), turn.answer))
    return turns


def same_meaning(clip: Clip, rng: random.Random) -> list[Turn]:
    """Does an answer say the same as the reference? To be asked without the clip (RRPO)."""
    if rng.random() < 0.5:
        turn, false, _ = _mistaken(clip, rng)
        question, right = turn.ask, turn.answer
    else:
        question, right = rng.choice(prompts.TELL), tell(clip.start, clip.events, setting=rng.random() < 0.5)
        false = tell(clip.start, altered(clip, rng), setting=right.startswith("At the start"))
    return [
        verdict(prompts.SAME_MEANING.format(question=question, reference=right, answer=right), True, rng),
        verdict(prompts.SAME_MEANING.format(question=question, reference=right, answer=false), False, rng),
    ]


def truth(clip: Clip, rng: random.Random) -> list[Turn]:
    """An event that happens and one that does not."""
    event = rng.choice(clip.events)
    pair = [is_true(sentence(clause(event)), True, rng)]
    pair.append(is_true(sentence(clause(wrong(clip, rng.choice(clip.events), rng))), False, rng))
    return _about(pair, rng)


def scenery_truth(clip: Clip, rng: random.Random) -> list[Turn]:
    """What is there at the start, told in any order, and the same with one thing changed or added."""
    true, false = list(clip.start), list(clip.start)
    rng.shuffle(true)
    rng.shuffle(false)
    at = rng.randrange(len(false))
    part = rng.choice(("kind", "colour", "place", "more"))
    if part == "kind" or part == "more":
        kind = rng.choice([kind for kind in KINDS if kind not in {thing.kind for thing in clip.start}])
        changed = replace(false[at], kind=kind)
        false = [*false, changed] if part == "more" else [*false[:at], changed, *false[at + 1 :]]
    elif part == "colour":
        false[at] = replace(false[at], colour=other(rng, tuple(COLOURS), false[at].colour))
    else:
        false[at] = replace(false[at], place=other(rng, PLACES, false[at].place))
    return _about([is_true(scenery(true), True, rng), is_true(scenery(false), False, rng)], rng)


def told_truth(clip: Clip, rng: random.Random) -> list[Turn]:
    """A sentence of the true caption, with its opening, and one with another event at that place."""
    at = rng.randrange(len(clip.events))
    opening = openings(len(clip.events))[at]
    others = [event for event in clip.events if event is not clip.events[at]]
    ends_only = opening != "Then"  # with three events "Then" could stand before another one as well
    false = rng.choice(others) if ends_only and rng.random() < 0.5 else wrong(clip, rng.choice(clip.events), rng)
    turns = [
        is_true(f"{opening} {clause(clip.events[at])}.", True, rng),
        is_true(f"{opening} {clause(false)}.", False, rng),
    ]
    return _about(turns, rng)


def before_after(clip: Clip, rng: random.Random, after: float = 0.5) -> list[Turn]:
    """One event before (or after, with probability `after`) another, told right and wrong way round with one word."""
    first, second = sorted(rng.sample(range(len(clip.events)), 2))
    word = "after" if rng.random() < after else "before"
    early, late = clause(clip.events[first]), clause(clip.events[second])
    one, two = (early, late) if word == "before" else (late, early)
    turns = [
        is_true(sentence(f"{one} {word} {two}"), True, rng),
        is_true(sentence(f"{two} {word} {one}"), False, rng),
    ]
    return _about(turns, rng)


def altered(clip: Clip, rng: random.Random) -> tuple[Event, ...]:
    """The events with two of them swapped, one added or one changed."""
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
    return tuple(events)


def caption_judging(clip: Clip, rng: random.Random) -> list[Turn]:
    """A true caption, and the same with two events swapped, one added or one changed."""
    setting = rng.random() < 0.5
    turns = [
        is_true(tell(clip.start, clip.events, setting=setting), True, rng),
        is_true(tell(clip.start, altered(clip, rng), setting=setting), False, rng),
    ]
    return _about(turns, rng)
