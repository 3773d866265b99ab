"""ms-swift's preference format: JSON lines of messages and a rejected answer, with marks for media in lists beside.

The chosen answer is the last turn. Where a pair of a conversion has a context of its own for the rejected answer, all
rows have `rejected_messages` with media of their own. A file must not mix the two ways: ms-swift drops rows whose
`rejected_response` is empty because only other rows have one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from mmalign.convert.baggage import COLUMN, Baggage
from mmalign.convert.format import Format, Lines, Survey, Writer, texts_of
from mmalign.convert.marks import MARKS, filled, marked, names, refuse_marked_answers, refuse_marks
from mmalign.convert.seen import MediaKind, Medium, Seen, Turn, Unfit, refuse_odd_turns, role_of, text_of
from mmalign.convert.shelf import Shelf
from mmalign.pairs import PairRow
from mmalign.types import Row

FILE = "pairs.jsonl"


class Swift(Format):
    """The format."""

    name: ClassVar[str] = "swift"
    title: ClassVar[str] = "ms-swift"

    def check(self, seen: Seen) -> None:
        """Raises Unfit for a pair that ms-swift cannot be told of, or would drop or refuse."""
        for turns in seen.contexts:
            refuse_odd_turns(turns, self.title, alternate=True)
        refuse_marks(seen, self.title)
        if seen.chosen == seen.rejected and seen.rejected_turns is None:
            raise Unfit("both answers are the same text, and ms-swift drops such rows")
        if not seen.chosen or not seen.rejected:
            raise Unfit("an answer is empty, and ms-swift drops such rows")

    @contextmanager
    def writer(self, folder: Path, survey: Survey, shelf: Shelf) -> Iterator[Writer]:
        """Writes `pairs.jsonl`."""
        kinds: list[MediaKind] = [kind for kind in MARKS if getattr(survey, f"has_{kind}s")]
        with Lines(folder / FILE, array=False) as lines:
            yield _SwiftWriter(lines, kinds, survey.has_contexts)

    # Reading ----------------------------------------------------------------------------------------------------------

    def knows(self, row: Row) -> bool:
        return "messages" in row and ("rejected_response" in row or "rejected_messages" in row)

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows, and what it carries along. Raises Unfit."""
        if row.get("tools") or row.get("audios") or row.get("objects"):
            raise Unfit("has tools, audios or objects, which pairs cannot hold")
        other: tuple[Turn, ...] | None
        turns, chosen = _conversation(row, "")
        if row.get("rejected_messages") is not None:
            other, rejected = _conversation(row, "rejected_")
        else:
            other, rejected = _other_media(row), _response(row.get("rejected_response"))
        seen = Seen(turns, chosen, rejected, None if other == turns else other)
        refuse_marked_answers(seen)
        return seen, Baggage.read(row.get(COLUMN))


class _SwiftWriter:
    def __init__(self, lines: Lines, kinds: Sequence[MediaKind], has_contexts: bool) -> None:
        self._lines, self._kinds, self._has_contexts = lines, kinds, has_contexts

    def add(self, row: PairRow, seen: Seen) -> None:
        values = self._side(seen.turns, seen.chosen)
        if self._has_contexts:
            other = self._side(seen.rejected_turns or seen.turns, seen.rejected)
            values |= {f"rejected_{key}": value for key, value in other.items()}
        else:
            values["rejected_response"] = seen.rejected
        self._lines.write(json.dumps({**values, COLUMN: Baggage.of(row, seen).to_text()}, ensure_ascii=False))

    def _side(self, turns: Sequence[Turn], answer: str) -> Row:
        messages = [{"role": turn.role, "content": marked(turn)} for turn in turns]
        lists = {f"{kind}s": names(turns, kind) for kind in self._kinds}
        return {"messages": [*messages, {"role": "assistant", "content": answer}], **lists}


def _conversation(row: Row, prefix: str) -> tuple[tuple[Turn, ...], str]:
    """The turns and the answer of one side. Raises Unfit."""
    column = f"{prefix}messages"
    messages = row.get(column)
    if not isinstance(messages, list) or not messages:
        raise Unfit(f"{column} is {messages!r:.60}; it must be a list of messages")
    texts, inside = _texts(messages, column)
    if texts[-1][0] != "assistant":
        raise Unfit(f"{column} ends with a turn of the {texts[-1][0]}; its last turn must be the answer")
    return _placed(texts[:-1], _media(row, prefix, inside)), texts[-1][1]


def _other_media(row: Row) -> tuple[Turn, ...] | None:
    """The context of a rejected answer that differs in its media alone; None where it does not."""
    if row.get("rejected_images") is None and row.get("rejected_videos") is None:
        return None
    texts, inside = _texts(row["messages"], "messages")
    media = {
        kind: _media(row, "" if row.get(f"rejected_{kind}s") is None else "rejected_", inside)[kind] for kind in MARKS
    }
    return _placed(texts[:-1], media)


def _media(row: Row, prefix: str, inside: Mapping[MediaKind, Sequence[Medium]]) -> Mapping[MediaKind, Sequence[Medium]]:
    """The media of a side: those in its messages, or else those in its lists. Raises Unfit."""
    found: dict[MediaKind, Sequence[Medium]] = {}
    for kind in MARKS:
        value = row.get(f"{prefix}{kind}s")
        named = value if isinstance(value, list) else [] if value is None else [value]
        if kind == "image":
            # datasets stores pictures as structs, and ms-swift takes those as well
            named = [entry.get("path") if isinstance(entry, dict) else entry for entry in named]
        listed = texts_of({"media": named}, "media")
        if listed and inside[kind]:
            raise Unfit(f"has {kind}s in its messages and in {prefix}{kind}s; it must be one of them")
        found[kind] = inside[kind] or [Medium(kind, name) for name in listed]
    return found


def _placed(texts: Sequence[tuple[str, str]], media: Mapping[MediaKind, Sequence[Medium]]) -> tuple[Turn, ...]:
    """Turns with their media. Where no text has a mark of a kind, its media stand before the first user's words, as in
    ms-swift. Raises Unfit for other numbers of marks than of media.
    """
    told = list(texts)
    for kind, mark in reversed(list(MARKS.items())):
        if media[kind] and not any(mark in text for _, text in told):
            place = next((place for place, (role, _) in enumerate(told) if role == "user"), None)
            if place is not None:
                told[place] = ("user", mark * len(media[kind]) + told[place][1])
    return filled(told, media)


def _texts(messages: Sequence[Any], column: str) -> tuple[list[tuple[str, str]], dict[MediaKind, list[Medium]]]:
    """Roles and texts with marks, and the media that stand in the messages themselves. Raises Unfit."""
    texts: list[tuple[str, str]] = []
    inside: dict[MediaKind, list[Medium]] = {kind: [] for kind in MARKS}
    for place, message in enumerate(messages):
        where = f"{column}[{place}]"
        if not isinstance(message, dict):
            raise Unfit(f"{where} is {message!r:.60}; it must be a message of a role and a content")
        role, content = role_of(message.get("role"), where), message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, where, inside) for part in content)
        texts.append((role, text_of(content, where)))
    return texts, inside


def _part(part: Any, where: str, inside: Mapping[MediaKind, list[Medium]]) -> str:
    told = part.get("type") if isinstance(part, dict) else None
    if told == "text":
        return text_of(part.get("text"), where)
    kind = next((kind for kind in MARKS if kind == told), None)
    if kind is None:
        raise Unfit(f"{where} holds {part!r:.60}; it must be a text, image or video part")
    if isinstance(part.get(kind), str):
        inside[kind].append(Medium(kind, part[kind]))
    return MARKS[kind]


def _response(value: Any) -> str:
    """The text of `rejected_response`: plain, or the only message of the assistant. Raises Unfit."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        if value[0].get("role") != "assistant":
            raise Unfit(f"rejected_response is {value!r:.60}; it must be text or one message of the assistant")
        value = value[0].get("content")
    return text_of(value, "rejected_response")
