"""Number and article of English nouns: 'an apple', 'a unicorn', 'boxes'."""

from __future__ import annotations

import re
from typing import Final

#: Words whose first letter says one thing and first sound another.
_CONSONANT_SOUND: Final = re.compile(
    r"uni(?!nter|nvit|mag|mport)|use|usual|utensil|ukulele|ufo\b|eu|ewe\b|one\b|once\b", re.I
)
_VOWEL_SOUND: Final = re.compile(r"hour|honest|honou?r|heir|x-?ray\b", re.I)


def article(words: str) -> str:
    """'a' or 'an', by the sound that `words` begin with."""
    if _VOWEL_SOUND.match(words):
        return "an"
    if _CONSONANT_SOUND.match(words):
        return "a"
    return "an" if words[:1].lower() in tuple("aeiou") else "a"


def with_article(words: str) -> str:
    """The words with their indefinite article: 'an orange fish'."""
    return f"{article(words)} {words}"


def plural(words: str) -> str:
    """The regular plural. The head of 'slice of pizza' is 'slice'; else it is the last word."""
    head, of, rest = words.partition(" of ")
    if re.search(r"(?:s|x|z|ch|sh)$", head):
        return f"{head}es{of}{rest}"
    if re.search(r"[^aeiou]y$", head):
        return f"{head[:-1]}ies{of}{rest}"
    return f"{head}s{of}{rest}"
