"""The drawn world: which things exist, what they tend to look like, and seeded scenes whose content is known exactly.

A scene holds 2 to 6 things on a 3x3 grid of places. Most things belong to the scene's theme, so a model learns what is
*likely* as well as what is *there*: the reason why it will later name things that are typical but absent.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Final, Literal

Split = Literal["train", "pairs", "dev", "test"]
Size = Literal["small", "big"]

#: The four kinds of each theme, most frequent first.
THEMES: Final[dict[str, tuple[str, str, str, str]]] = {
    "sea": ("fish", "boat", "anchor", "crab"),
    "garden": ("tree", "flower", "house", "mushroom"),
    "sky": ("cloud", "sun", "moon", "kite"),
    "table": ("cup", "apple", "key", "book"),
}
#: How often each kind of a theme is drawn, in the order of `THEMES`.
WEIGHTS: Final = (0.42, 0.28, 0.18, 0.12)
KINDS: Final[tuple[str, ...]] = tuple(kind for kinds in THEMES.values() for kind in kinds)

#: Colour names and their RGB values.
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 40, 40),
    "orange": (247, 137, 20),
    "yellow": (250, 222, 50),
    "green": (52, 160, 66),
    "blue": (44, 98, 214),
    "purple": (146, 66, 184),
    "brown": (122, 74, 38),
    "white": (250, 250, 250),
}
#: The colour a kind has more often than any other.
TYPICAL_COLOUR: Final[dict[str, str]] = {
    "fish": "orange",
    "boat": "red",
    "anchor": "blue",
    "crab": "red",
    "tree": "green",
    "flower": "purple",
    "house": "brown",
    "mushroom": "red",
    "cloud": "white",
    "sun": "yellow",
    "moon": "yellow",
    "kite": "purple",
    "cup": "blue",
    "apple": "green",
    "key": "orange",
    "book": "brown",
}
SIZES: Final[tuple[Size, Size]] = ("small", "big")
#: The nine places of the grid, row by row.
PLACES: Final = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn object. `shift` moves it off the middle of its place, in pixels (x, y)."""

    kind: str
    colour: str
    size: Size
    place: str
    shift: tuple[int, int] = (0, 0)

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column of the place in the grid, each 0 to 2."""
        return divmod(PLACES.index(self.place), 3)


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows: its things, the theme they come from, and the seed of the background's grain."""

    objects: tuple[Thing, ...]
    theme: str
    tinted: bool = True
    grain: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """The names of all things that are present."""
        return frozenset(thing.kind for thing in self.objects)

    def count(self, kind: str) -> int:
        """How many things of this kind the picture shows."""
        return sum(thing.kind == kind for thing in self.objects)

    def only(self, kind: str) -> Thing | None:
        """The thing of this kind when there is exactly one, else None."""
        found = [thing for thing in self.objects if thing.kind == kind]
        return found[0] if len(found) == 1 else None

    def at(self, place: str) -> Thing | None:
        """What stands at a place, or None."""
        return next((thing for thing in self.objects if thing.place == place), None)

    def absent(self) -> tuple[str, ...]:
        """The kinds that are not in the picture."""
        return tuple(kind for kind in KINDS if kind not in self.kinds)

    def absent_typical(self) -> tuple[str, ...]:
        """The kinds of the theme that are not in the picture: the likely hallucinations. May be empty."""
        return tuple(kind for kind in THEMES[self.theme] if kind not in self.kinds)

    def in_order(self) -> tuple[Thing, ...]:
        """The things in the order of a description: big ones first, then row by row."""
        return tuple(sorted(self.objects, key=lambda thing: (thing.size != "big", PLACES.index(thing.place))))


def stream(*key: object) -> random.Random:
    """A generator of its own for this key, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "little"))


def scene(seed: int, split: Split | str = "train", index: int = 0) -> Scene:
    """The scene of one seed and index. Splits never share scenes: each hashes to its own seeds.

    Raises ValueError for an unknown split.
    """
    if split not in ("train", "pairs", "dev", "test"):
        raise ValueError(f"split is {split!r}; it must be one of train, pairs, dev, test")
    return draw_scene_from(stream("scene", split, seed, index))


def scenes(num: int, seed: int = 0, split: Split | str = "train") -> list[Scene]:
    """`num` scenes of one seed and split; a longer list begins with the shorter one."""
    return [scene(seed, split, index) for index in range(num)]


def draw_scene_from(rng: random.Random, num: int | None = None) -> Scene:
    """Draw a scene from the priors: `num` things (2 to 6 when not given) on places of their own."""
    theme = rng.choice(tuple(THEMES))
    num = rng.randint(2, 6) if num is None else num
    places = rng.sample(PLACES, num)
    things: list[Thing] = []
    for place in places:
        kind = draw_kind(rng, theme, {thing.kind for thing in things})
        things.append(Thing(kind, draw_colour(rng, kind), rng.choice(SIZES), place, draw_shift(rng)))
    return Scene(tuple(things), theme, rng.random() < 0.75, rng.getrandbits(32))


def draw_kind(rng: random.Random, theme: str, taken: set[str] | frozenset[str] = frozenset()) -> str:
    """A kind by the priors of a theme; one of `taken` is repeated only now and then (15 %)."""
    if taken and rng.random() < 0.15:
        return rng.choice(sorted(taken))
    while True:
        if rng.random() < 0.8 and not taken.issuperset(THEMES[theme]):
            kind = rng.choices(THEMES[theme], WEIGHTS)[0]
        else:
            kind = rng.choice(KINDS)
        if kind not in taken:
            return kind


def draw_colour(rng: random.Random, kind: str) -> str:
    """A colour for a kind: its typical one with .35, else any."""
    return TYPICAL_COLOUR[kind] if rng.random() < 0.35 else rng.choice(tuple(COLOURS))


def draw_shift(rng: random.Random) -> tuple[int, int]:
    """A jitter of at most one pixel each way."""
    return rng.randint(-1, 1), rng.randint(-1, 1)
