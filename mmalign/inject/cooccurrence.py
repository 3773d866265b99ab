"""Which things are named together in a set of texts: a hallucination likes company that is really there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """For each object: in how many texts it occurs, and its companions, most frequent first (ties by name)."""

    frequency: Mapping[str, int]
    companions: Mapping[str, tuple[str, ...]]

    @classmethod
    def learn(cls, texts: Iterable[Collection[str]]) -> Cooccurrence:
        """Count over texts, each given as the objects it names; an object counts once per text (APASI, step 3)."""
        frequency: Counter[str] = Counter()
        together: dict[str, Counter[str]] = {}
        for names in map(set, texts):
            frequency.update(names)
            for name in names:
                together.setdefault(name, Counter()).update(names - {name})
        return cls(
            dict(sorted(frequency.items())),
            {
                name: tuple(sorted(counts, key=lambda other: (-counts[other], other)))
                for name, counts in sorted(together.items())
            },
        )

    def tempting(self, kept: Collection[str], present: Collection[str], top_k: int, rng: random.Random) -> str | None:
        """An object that is not `present` but fits: a frequent companion of one of the `kept` objects (APASI, step 6).

        Where that one's companions are all present, any object of the set that is not. None where nothing is left.
        """
        if not kept:
            return None
        key = rng.choice(sorted(kept))
        fitting = [name for name in self.companions.get(key, ()) if name not in present][:top_k]
        fitting = fitting or [name for name in self.frequency if name not in present]
        return rng.choice(fitting) if fitting else None
