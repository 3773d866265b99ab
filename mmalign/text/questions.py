"""Questions that a model wrote when it was asked for some, one per line."""

from __future__ import annotations

import re
from typing import Final

from mmalign.types import Completion

#: What models put before a question: bullets, numbers, "Q1:", "Question 2.".
_MARK: Final = re.compile(r"^\s*(?:[-*•–]+|\(?\d+[.):]|(?:q|question)\s*\d*\s*[.:)])\s*", re.IGNORECASE)


def questions(written: Completion, *, min_words: int = 5) -> list[str]:
    """The lines that are a question of at least `min_words` words and nothing more, in order, none twice.

    Two questions are the same when they differ in case, spacing or punctuation only (VideoSAVi, arXiv 2412.00624).
    Of a text that was cut off the last line is left out.
    """
    found: dict[str, str] = {}
    lines = written.text.splitlines()
    for line in lines[:-1] if written.finish == "length" else lines:
        question = line.replace("**", "").strip(" \t\"'`*_")
        while (bare := _MARK.sub("", question).strip(" \t\"'`*_")) != question:
            question = bare
        if question.endswith("?") and len(question.split()) >= min_words:
            found.setdefault(normalised(question), question)
    return list(found.values())


def normalised(text: str) -> str:
    """The words of a text in lower case, without punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.casefold()))
