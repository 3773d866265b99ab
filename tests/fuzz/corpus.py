"""Hostile files by seed and number: the same two numbers give the same file, and nothing is kept in the repository."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz import clips, lines, pictures, recipes, seeds, tables
from tests.fuzz.damage import DAMAGES, Damage

#: Of ten files so many are of a kind.
KINDS: Final = ("picture",) * 4 + ("clip",) * 2 + ("lines",) * 2 + ("table", "recipe")

_SUFFIXES: Final = {
    "picture": (".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".avif", ".jp2", ".mp4"),
    "clip": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".ogv", ".gif", ".png"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A file: its kind, the door it goes through ("picture", "clip", "samples", "pairs", "labels", "recipe"), its name
    and bytes, and the damage in words.
    """

    seed: int
    number: int
    kind: str
    door: str
    name: str
    content: bytes
    damage: str

    def __str__(self) -> str:
        return f"seed {self.seed} number {self.number} ({self.kind} {self.name!r:.60}, {self.damage})"


def made(seed: int, number: int, workplace: Path) -> Case:
    """The file; good clips to damage are first written into `workplace`."""
    rng = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    door, damage = kind, ""
    if kind in ("picture", "clip"):
        good = seeds.pictures() if kind == "picture" else seeds.clips(workplace)
        source = rng.choice(sorted(good))
        content, damage = _damaged(rng, good, source, pictures.LIES if kind == "picture" else clips.LIES)
        suffix = rng.choice(_SUFFIXES[kind]) if rng.random() < 0.1 else Path(source).suffix
    elif kind == "lines":
        door, suffix = rng.choice(("samples", "samples", "pairs", "pairs", "labels")), ".jsonl"
        content = lines.made(rng, door)
    elif kind == "table":
        door, suffix = rng.choice(("samples", "pairs")), ".parquet"
        content = tables.made(rng, door)
    else:
        suffix, content = ".yaml", recipes.made(rng)
    return Case(seed, number, kind, door, _name(rng, suffix), content, damage or door)


def _damaged(rng: random.Random, good: dict[str, bytes], source: str, lies: tuple[Damage, ...]) -> tuple[bytes, str]:
    content, other = good[source], good[rng.choice(sorted(good))]
    acts = [rng.choice(lies) if rng.random() < 0.4 else rng.choice(DAMAGES)]
    if rng.random() < 0.25:
        acts.append(rng.choice(DAMAGES))
    for act in acts:
        content = act(rng, content, other)
    return content, f"{source}: {', '.join(act.__name__ for act in acts)}"


def _name(rng: random.Random, suffix: str) -> str:
    """A file name that a file system takes; some have characters that no line and no terminal should."""
    odd = (
        "a\nb",
        "\x1b[31mred",
        "\u202egnp",
        "x" * 200,
        "with space",
        "-rf",
        "~",
        "写真",
        "a'b\"c",
        "[red]x",
        "%s%n",
    )
    stem = rng.choice(odd) if rng.random() < 0.1 else "hostile"
    return stem + suffix
