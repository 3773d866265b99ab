"""Marks in text for media that stand in lists beside it, as LLaMA-Factory and ms-swift write them.

Neither of them can escape a mark, so a text that holds one by itself is refused. So are numbers of marks that differ
from those of the media, either way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmalign.convert.seen import MediaKind, Medium, Part, Seen, Turn, Unfit, joined

MARKS: Mapping[MediaKind, str] = {"image": "<image>", "video": "<video>"}
#: What other tools take for a medium wherever it stands.
READ_AS_MEDIA = re.compile(r"<(?:image|video|audio)>")
_SPLIT = re.compile(r"(<image>|<video>)")


def marked(turn: Turn) -> str:
    """A turn as one text, with a mark for every medium."""
    return "".join(part if isinstance(part, str) else MARKS[part.kind] for part in turn.parts)


def names(turns: Sequence[Turn], kind: MediaKind) -> list[str]:
    """The names of the turns' media of one kind, in order."""
    return [medium.name for turn in turns for medium in turn.media if medium.kind == kind]


def refuse_marks(seen: Seen, tool: str) -> None:
    """Raises Unfit where a text holds what `tool` would take for a medium. No format has a way to escape it."""
    texts = [("a turn", part) for turns in seen.contexts for turn in turns for part in turn.parts]
    for where, text in [*texts, ("the chosen answer", seen.chosen), ("the rejected answer", seen.rejected)]:
        if isinstance(text, str) and (found := READ_AS_MEDIA.search(text)):
            raise Unfit(f"{where} holds the text {found[0]!r}, which {tool} would take for a medium")


def filled(texts: Sequence[tuple[str, str]], media: Mapping[MediaKind, Sequence[Medium]]) -> tuple[Turn, ...]:
    """Turns of (role, text with marks) with the media in the places of the marks.

    Raises Unfit where a kind has more or fewer marks than media.
    """
    for kind, mark in MARKS.items():
        count = sum(text.count(mark) for _, text in texts)
        if count != len(media[kind]):
            raise Unfit(f"has {count} {mark} marks and {len(media[kind])} {kind}s; their numbers must be equal")
    rest = {kind: iter(media[kind]) for kind in MARKS}
    kinds = {mark: kind for kind, mark in MARKS.items()}

    def parts(text: str) -> list[Part]:
        return [next(rest[kinds[piece]]) if piece in kinds else piece for piece in _SPLIT.split(text)]

    return tuple(Turn(role, joined(parts(text))) for role, text in texts)


def refuse_marked_answers(seen: Seen) -> None:
    """Raises Unfit where an answer that was read holds a mark: media stand in the prompt only."""
    for side in ("chosen", "rejected"):
        if found := _SPLIT.search(getattr(seen, side)):
            raise Unfit(f"the {side} answer holds the mark {found[0]}; media stand in the prompt only")
