"""Sentences with their places. The pieces of a text, put together again, are the text, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: One or more marks, with what closes around them. A full stop beside a digit belongs to a number (APASI, step 4).
_END: Final = re.compile(r"(?:(?<!\d)\.+(?!\d)|[!?。！？]|\.{2,})(?:[.!?。！？])*[\"'’”)\]»*]*|\n+")
_ABBREVIATIONS: Final = frozenset(
    "e.g i.e etc vs mr mrs ms dr st prof no fig approx cf al jr sr inc ltd co dept est a.m p.m".split()
)
#: Titles and links: the sentence goes on even before a capital.
_GOES_ON: Final = frozenset("e.g i.e vs mr mrs ms dr st prof fig cf approx".split())
_STARTERS: Final = re.compile(r"\s+(?:The|A|An|There|It|Its|In|On|At|He|She|They|This|That|To|Also|Then)\b")
_LAST_WORD: Final = re.compile(r"(?:\w\.)*\w+\Z")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of a text: the white space before it belongs to it, and to the last one what follows it too."""

    text: str
    start: int
    end: int

    @property
    def lead(self) -> str:
        """What stands before the first word: white space, and the mark of a list ("- ", "2. ")."""
        found = re.match(r"\s*(?:(?:[-*•]|\d+[.)])\s+)?", self.text)
        return found[0] if found else ""

    @property
    def tail(self) -> str:
        """The white space after the last word."""
        return self.text[len(self.text.rstrip()) :] if self.text.strip() else ""

    @property
    def core(self) -> tuple[int, int]:
        """Character range, in the whole text, of the words without `lead` and `tail`."""
        start = min(self.start + len(self.lead), self.end)
        return start, max(start, self.end - len(self.tail))


def sentences(text: str) -> list[Sentence]:
    """Split at '.', '!', '?', their full-width forms and line breaks; not inside 3.5, 'U.S.', 'e.g.' or 'site.org'.

    A last piece without a mark counts as a sentence. Text without any word gives no more than one piece.
    """
    cuts: list[int] = []
    for found in _END.finditer(text):
        if _ends(text, found):
            cuts.append(found.end())
    pieces: list[Sentence] = []
    start = 0
    for cut in [*cuts, len(text)]:
        if re.search(r"\w", text[start:cut]):
            pieces.append(Sentence(text[start:cut], start, cut))
            start = cut
    if start < len(text):  # what is left has no word: it goes to the last sentence
        first = pieces.pop().start if pieces else 0
        pieces.append(Sentence(text[first:], first, len(text)))
    return pieces


def _ends(text: str, found: re.Match[str]) -> bool:
    mark = found[0]
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    after = text[found.end() :]
    before = _LAST_WORD.search(text, max(0, found.start() - 40), found.start())
    word = before[0] if before else ""
    if word.lower() in _GOES_ON:
        return False
    if word.lower() in _ABBREVIATIONS or re.fullmatch(r"[A-Z]|\w(?:\.\w)+", word):  # "U.S.", "J. Doe"
        return not after.strip() or bool(_STARTERS.match(after)) or after.startswith("\n")
    if not after or not after[0].isalnum():
        return True
    return after[0].isupper()  # "dog.The" lacks a space; "site.org" and "file.txt" are one word
