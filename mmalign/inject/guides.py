"""Beginnings of sentences that name a thing which is likely but not described (APASI, arXiv 2509.11287)."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmalign.errors import NoPair
from mmalign.inject.cooccurrence import Cooccurrence
from mmalign.text.objects import Vocabulary

#: `{a}` is the thing with its article, `{plural}` is more than one of it. Our own wording.
OPENERS: Final = (
    "There is {a}",
    "There is also {a}",
    "There are {plural}",
    "There are also {plural}",
    "On the left there is {a}",
    "On the right there is {a}",
    "At the top there is {a}",
    "At the bottom there is {a}",
    "In the middle there is {a}",
    "In the background there is {a}",
    "In the background there are {plural}",
    "In the foreground there is {a}",
    "In one corner there is {a}",
    "Near the edge there is {a}",
    "Not far away there is {a}",
    "In the distance there are {plural}",
    "To the side there are {plural}",
    "The picture also shows {a}",
    "One can also see {a}",
    "Next to it there is {a}",
)


@dataclass(frozen=True, slots=True)
class Guide:
    """The beginning forced on a sentence, and the object that it names."""

    name: str
    phrase: str


def guide(name: str, vocabulary: Vocabulary, openers: Sequence[str], rng: random.Random) -> Guide:
    """A beginning that names the object by one of its words, with the right article and number.

    A word without a plural of its own gets no plural opener; raises NoPair where only those are given.
    """
    word = rng.choice(vocabulary.synonyms(name))
    values: Mapping[str, str] = {"a": vocabulary.thing(name, word), "plural": vocabulary.plural(name, word)}
    fitting = [opener for opener in openers if "{a}" in opener or values["plural"] != word]
    if not fitting:
        raise NoPair(f"no opener fits {word!r}, which has no plural")
    return Guide(name, re.sub(r"\{(a|plural)\}", lambda found: values[found[1]], rng.choice(fitting)))


@dataclass(frozen=True, slots=True)
class Guides:
    """Draws guides for one description.

    `kept` are the things named in sentences that stay, `taken` all that the description names; `is_there`, where given,
    looks at the picture, and an object that it affirms is passed over. No object is drawn twice.
    """

    known: Cooccurrence
    vocabulary: Vocabulary
    kept: Collection[str]
    taken: Collection[str]
    rng: random.Random
    openers: Sequence[str] = OPENERS
    top_k: int = 10
    attempts: int = 3
    is_there: Callable[[str], Awaitable[bool]] | None = None
    drawn: set[str] = field(default_factory=set)

    async def draw(self) -> Guide:
        """The next guide. Raises NoPair where nothing fits, or `attempts` objects in a row are in the picture."""
        for _ in range(self.attempts):
            name = self.known.tempting(self.kept, {*self.taken, *self.drawn}, self.top_k, self.rng)
            if name is None:
                raise NoPair("there is no thing to inject: nothing is named elsewhere, or everything known is")
            self.drawn.add(name)
            if self.is_there is None or not await self.is_there(name):
                return guide(name, self.vocabulary, self.openers, self.rng)
        raise NoPair("the model sees all the things that could be injected")
