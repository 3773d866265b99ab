"""Captions of a video's parts: the requests for them (our wording), and what a model wrote brought to bare text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: What one part of a video, and the whole told part by part, are asked for; the wording is ours.
FIRST_PART: Final = "Describe this clip in detail, in one paragraph."
NEXT_PART: Final = (
    "These are two clips of one video, clip 1 and then clip 2. Say what clip 2 shows. Then say how the two clips are "
    "connected. Last, in a line of its own, describe clip 2 in detail."
)
WHOLE: Final = (
    "These are descriptions of the clips of one video, in order.\n{captions}\nTell what happens in the whole video in "
    "one paragraph: in this order, in detail, and nothing twice. Write only this paragraph."
)

_LABEL: Final = re.compile(
    r"^\W*(?:(?:detailed|final)\s+)?(?:caption|description|answer)(?:\s+(?:of|for)\s+(?:the\s+)?(?:second\s+clip|clip\s*2))?"
    r"\W*:\s*|^\W*(?:the\s+)?(?:second\s+clip|clip\s*2)\W*:\s*",
    re.IGNORECASE,
)
_PREVIOUS: Final = re.compile(r"\b(?:(?:the\s+)?first\s+clip|clip\s*1)\b", re.IGNORECASE)
_THIS: Final = re.compile(r"\b(?:(?:the\s+)?second\s+clip|clip\s*2)\b", re.IGNORECASE)


def bare_caption(text: str) -> str:
    """The last line of a model's answer, thoughts, labels, asterisks and quotation marks gone (TEMPLE's own cleaning).

    "clip 1" and "clip 2" become "the previous clip" and "this clip", since a list of captions has other numbers.
    """
    lines = [line for line in text.rpartition("</think>")[2].splitlines() if line.strip()]
    if not lines:
        return ""
    last = _LABEL.sub("", lines[-1].replace("*", "").strip()).strip().strip("\"'“”")
    return _THIS.sub("this clip", _PREVIOUS.sub("the previous clip", last)).strip()


def says_something(text: str) -> bool:
    """Whether a text is more than nothing or "N/A"."""
    return re.sub(r"[\W_]+", "", text).casefold() not in ("", "na", "none")


def numbered(captions: Sequence[str]) -> str:
    """'1. A dog runs.' and so on, one per line."""
    return "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
