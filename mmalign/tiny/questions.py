"""Questions about a scene with true answers. Every yes/no template comes in pairs, one yes and one no per scene.

The pairs are what makes a small model look at the picture: unpaired questions can be answered from habit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmalign.text import prompts
from mmalign.tiny.language import NUMBERS, Style, a, caption, imagined, phrase, sentence, told, write
from mmalign.tiny.world import COLOURS, KINDS, PLACES, Scene, Thing, draw_scene_from

#: Weight of a yes/no answer's tokens in the loss, of a short answer's, and of a caption's.
YES_NO_WEIGHT: Final = 2.5
SHORT_WEIGHT: Final = 1.5
CAPTION_WEIGHT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer, and the weight of the answer's tokens in the loss."""

    ask: str
    answer: str
    weight: float = SHORT_WEIGHT


#: How a caption's sentences begin; claims are judged in the same words.
OPENINGS: Final = ("There is", "There is also", "There is also", "First, there is", "Then there is", "Last, there is")


def verdict(question: str, true: bool, rng: random.Random) -> Turn:
    """A yes/no turn; half of the questions say how to answer."""
    if rng.random() < 0.5:
        question = f"{question} {prompts.YES_OR_NO}"
    return Turn(question, "Yes." if true else "No.", YES_NO_WEIGHT)


def is_true(statement: str, true: bool, rng: random.Random) -> Turn:
    return verdict(prompts.IS_TRUE.format(statement=statement), true, rng)


def is_there(thing: str, true: bool, rng: random.Random) -> Turn:
    question = f"Is there {thing}?" if rng.random() < 0.15 else prompts.IS_THERE.format(thing=thing)
    return verdict(question, true, rng)


def other(rng: random.Random, pool: Sequence[str], than: str) -> str:
    return rng.choice([word for word in pool if word != than])


def absent_kind(scene: Scene, rng: random.Random) -> str:
    """An absent kind, drawn as kinds occur in scenes (half of them typical), so that no kind tells the answer."""
    while True:
        alike = draw_scene_from(rng)
        if rng.random() < 0.5:
            typical = scene.absent_typical()
            if typical:
                return rng.choice(typical)
        found = sorted(alike.kinds - scene.kinds)
        if found:
            return rng.choice(found)


def existence(scene: Scene, rng: random.Random) -> list[Turn]:
    """Is there a present kind / an absent kind: one each. Now and then with the colour, right and wrong."""
    thing = rng.choice(scene.objects)
    if rng.random() < 0.2:
        false = replace(thing, colour=other(rng, tuple(COLOURS), thing.colour))
        if any((seen.kind, seen.colour) == (false.kind, false.colour) for seen in scene.objects):
            false = replace(thing, kind=absent_kind(scene, rng))
        pair = (phrase(thing, size=False, place=False), phrase(false, size=False, place=False))
    else:
        pair = (a(thing.kind), a(absent_kind(scene, rng)))
    return [is_there(pair[0], True, rng), is_there(pair[1], False, rng)]


def spoil(scene: Scene, thing: Thing, part: str, rng: random.Random) -> Thing:
    """The thing with one part wrong: 'kind', 'colour' or 'place'. What results is nowhere in the scene."""
    if part == "colour":
        for colour in rng.sample(tuple(COLOURS), len(COLOURS)):
            if not any((seen.kind, seen.colour) == (thing.kind, colour) for seen in scene.objects):
                return replace(thing, colour=colour)
    if part == "place":
        wrong = [place for place in PLACES if all((s.kind, s.place) != (thing.kind, place) for s in scene.objects)]
        return replace(thing, place=rng.choice(wrong))
    return replace(thing, kind=absent_kind(scene, rng))


def statement(thing: Thing, form: int, opening: str) -> str:
    """One claim about a thing; forms 0 to 6 differ in wording and in how much they say."""
    if form == 0:
        return f"{opening} {phrase(thing)}."
    if form == 1:
        return f"There is {phrase(thing, size=False, place=False)}."
    if form == 2:
        return f"There is {phrase(thing, size=False, colour=False)}."
    if form == 3:
        return f"There is {phrase(thing, size=False)}."
    if form == 4:
        return f"The {thing.kind} is {thing.colour}."
    if form == 5:
        return f"The {thing.kind} is {thing.place}."
    return f"There is {a(thing.kind)}."


def statements(scene: Scene, rng: random.Random) -> list[Turn]:
    """One true and one false claim in the same form."""
    thing = rng.choice(scene.objects)
    form = rng.choice((0, 0, 0, 1, 2, 3, 3, 4, 5, 6))
    opening = rng.choice(OPENINGS)
    parts = {0: "kind colour place", 1: "kind colour", 2: "kind place", 3: "kind colour place", 4: "colour", 5: "place"}
    part = rng.choice(parts.get(form, "kind").split())
    if form == 0 and rng.random() < 0.25:
        false = imagined(scene, rng)
    else:
        false = spoil(scene, rng.choice(scene.objects), part, rng)
    return [is_true(statement(thing, form, opening), True, rng), is_true(statement(false, form, opening), False, rng)]


def caption_judging(scene: Scene, rng: random.Random) -> list[Turn]:
    """A whole true caption and the same with one thing added or changed."""
    style: Style = rng.choice(("detail", "step", "brief"))
    things = list(told(scene, "step", rng))[: 3 if style == "brief" else 6]
    if len(things) > 2 and rng.random() < 0.4:  # a caption that leaves things out is true as well
        things = [things[at] for at in sorted(rng.sample(range(len(things)), rng.randint(2, len(things) - 1)))]
    true = write(tuple(things), style)
    part = rng.choice(("add", "add", "kind", "colour", "place")) if style != "brief" else rng.choice(("kind", "colour"))
    if part == "add":
        things.append(imagined(scene, rng))
    else:
        at = rng.randrange(len(things))
        things[at] = spoil(scene, things[at], part, rng)
    return [is_true(true, True, rng), is_true(write(tuple(things), style), False, rng)]


def relation(scene: Scene, rng: random.Random) -> list[Turn]:
    """Is one thing left of, right of, above or below another: asked both ways round. Empty when no pair is clear."""
    lone = [thing for thing in scene.objects if scene.count(thing.kind) == 1]
    pairs = [(one, two) for one in lone for two in lone if one is not two]
    rng.shuffle(pairs)
    for one, two in pairs:
        axis = rng.randrange(2)
        if one.cell[axis] < two.cell[axis]:
            word, reverse = (("above", "below"), ("left of", "right of"))[axis]
            asked = rng.choice((word, reverse))
            if asked == reverse:
                one, two = two, one
            turns = [(f"Is the {one.kind} {asked} the {two.kind}?", True)]
            turns.append((f"Is the {two.kind} {asked} the {one.kind}?", False))
            return [verdict(question, true, rng) for question, true in turns]
    return []


def colour(scene: Scene, rng: random.Random) -> list[Turn]:
    thing = rng.choice(scene.objects)
    if scene.count(thing.kind) != 1:
        return []
    word = "color" if rng.random() < 0.2 else "colour"
    return [Turn(f"What {word} is the {thing.kind}?", sentence(thing.colour))]


def where(scene: Scene, rng: random.Random) -> list[Turn]:
    thing = rng.choice(scene.objects)
    if scene.count(thing.kind) != 1:
        return []
    return [Turn(f"Where is the {thing.kind}?", sentence(thing.place))]


def what_is_at(scene: Scene, rng: random.Random) -> list[Turn]:
    place = rng.choice(PLACES) if rng.random() < 0.4 else rng.choice(scene.objects).place
    thing = scene.at(place)
    return [Turn(f"What is {place}?", sentence(phrase(thing, size=False, place=False)) if thing else "Nothing.")]


def size(scene: Scene, rng: random.Random) -> list[Turn]:
    thing = rng.choice(scene.objects)
    if scene.count(thing.kind) != 1:
        return []
    words = ("big or small", "small or big")[rng.randrange(2)]
    return [Turn(f"Is the {thing.kind} {words}?", sentence(thing.size))]


def total(scene: Scene, rng: random.Random) -> list[Turn]:
    return [Turn("How many things are in the picture?", sentence(NUMBERS[len(scene.objects)]))]


def count(scene: Scene, rng: random.Random) -> list[Turn]:
    """How many of a kind; of the numbers in the scene, zero among them, one is asked less."""
    numbers = sorted({scene.count(kind) for kind in KINDS})
    number = rng.choices(numbers, [1 if n == 1 else 2 for n in numbers])[0]
    kind = rng.choice([kind for kind in KINDS if scene.count(kind) == number])
    return [Turn(f"How many {plural(kind)} are there?", sentence(NUMBERS[number]))]


def listing(scene: Scene, rng: random.Random) -> list[Turn]:
    return [Turn(prompts.LIST_OBJECTS, caption(scene, "list", rng))]


def plural(kind: str) -> str:
    """'fish' has none of its own."""
    return kind if kind == "fish" else f"{kind}s"


Asker = Callable[[Scene, random.Random], list[Turn]]
#: The short questions and how often each is asked.
SHORT: Final[dict[Asker, int]] = {
    colour: 4,
    where: 4,
    what_is_at: 3,
    count: 2,
    total: 2,
    size: 2,
    relation: 3,
    listing: 3,
}


def short(scene: Scene, rng: random.Random) -> list[Turn]:
    """One short question (a pair when it is yes/no); empty when it does not fit the scene."""
    asker = rng.choices(list(SHORT), list(SHORT.values()))[0]
    return asker(scene, rng)
