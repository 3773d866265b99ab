"""Adjectives that can be seen: what a claim can say of a thing beside that it is there."""

from __future__ import annotations

from typing import Final

COLOURS: Final = frozenset(
    "red orange yellow green blue purple brown white black gray grey pink beige tan turquoise teal violet maroon navy "
    "gold golden silver cyan magenta crimson scarlet turquoise olive cream khaki".split()
)
SIZES: Final = frozenset("big small large little tiny huge tall short long giant".split())
MATERIALS: Final = frozenset(
    "wooden metal plastic glass stone brick leather paper concrete marble steel iron straw wicker cardboard".split()
)
#: Patterns, and states that a picture shows.
STATES: Final = frozenset(
    "striped spotted checkered plaid round square open closed empty full broken wet dry lit old new young".split()
)
VISIBLE: Final = COLOURS | SIZES | MATERIALS | STATES
