"""Whether a text says that a thing is *not* there: 'no people', 'without a dog', 'there is no cat', 'not a boat'."""

from __future__ import annotations

import re
from typing import Final

_CUE: Final = re.compile(
    r"(?:\b(?:no(?!,)|without|lacks?|lacking|neither|nor|none of|devoid of|free of|absence of|zero|instead of)|"
    r"(?:\bnot|n['’]t|\bcannot)\s+(?:a|an|any|see|show|have|include|contain|depict|feature))\b(?!\s+(?:one|doubt|longer)\b)",
    re.IGNORECASE,
)
#: Words that end what a negation reaches: the next clause, a place, a contrast.
_STOPS: Final = re.compile(
    r"\b(?:but|is|are|was|were|has|have|in|on|at|near|by|under|behind|there|while|which|who|that|only|except|just|far|"
    r"and\s+(?:a|an|the|one|two|three|some|several|many|there))\b|,\s*(?:a|an|the|one|two|some|several)\b|[.!?;:\n]",
    re.IGNORECASE,
)
_AFTER: Final = re.compile(
    r"\s+(?:(?:is|are|was|were)\s+(?:not|nowhere)\s+(?:visible|present|there|shown|seen|in)|"
    r"(?:isn|aren|wasn|weren)['’]t\s+(?:visible|present|there|shown|seen|in)|(?:is|are)\s+(?:absent|missing))\b",
    re.IGNORECASE,
)
_REACH: Final = 60


def negated(text: str, start: int, end: int) -> bool:
    """Whether the words at `start` to `end` are denied by the text around them."""
    if _AFTER.match(text, end):
        return True
    window = text[max(0, start - _REACH) : start]
    cues = list(_CUE.finditer(window))
    return bool(cues) and not _STOPS.search(window, cues[-1].end())
