"""TRL's conversational preference format, read and written as Parquet that `datasets.load_dataset` opens.

Pairs about pictures have `images` and message lists with `{"type": "image"}` parts, as TRL's vision trainer wants them;
where no pair of a conversion has a picture, contents are plain text and there is no such column. A picture is the bytes
of its file where media are copied, and the absolute path of it otherwise: `datasets` takes relative paths to start at
the working directory. TRL's preference trainer takes no videos (1.16), so clips go as pictures of their frames, or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from mmalign.convert.baggage import COLUMN, Baggage
from mmalign.convert.format import Format, Survey, Table, Writer
from mmalign.convert.marks import refuse_marks
from mmalign.convert.seen import (
    Medium,
    Part,
    Seen,
    Turn,
    Unfit,
    joined,
    refuse_contexts,
    refuse_odd_turns,
    role_of,
    text_of,
)
from mmalign.convert.shelf import Shelf
from mmalign.pairs import PairRow
from mmalign.types import Row

_TEXT = pa.string()
_PARTS = pa.list_(pa.struct([("type", _TEXT), ("text", _TEXT)]))
_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", _TEXT)]))
_SIDES = ("prompt", "chosen", "rejected")


class TRL(Format):
    """The format of `trl.DPOTrainer` and the other preference trainers."""

    name: ClassVar[str] = "trl"
    title: ClassVar[str] = "TRL"

    def check(self, seen: Seen) -> None:
        """Raises Unfit for a pair that TRL cannot be told of."""
        refuse_contexts(seen, self.title)
        refuse_odd_turns(seen.turns, self.title, alternate=False)
        refuse_marks(seen, self.title)
        if clip := next((medium for medium in seen.media if medium.kind == "video"), None):
            raise Unfit(f"{clip.name}: is a clip, and TRL's preference trainer takes none; --frames writes its frames")

    def put_media(self, row: PairRow, seen: Seen, shelf: Shelf, folder: Path) -> None:
        """Pictures lie in the rows themselves."""

    @contextmanager
    def writer(self, folder: Path, survey: Survey, shelf: Shelf) -> Iterator[Writer]:
        """Writes `train.parquet`."""
        with Table(folder / "train.parquet", _schema(survey.has_media)) as table:
            yield _TRLWriter(table, survey.has_media, shelf)

    # Reading ----------------------------------------------------------------------------------------------------------

    def knows(self, row: Row) -> bool:
        return {"chosen", "rejected"} <= row.keys() and (
            isinstance(row["chosen"], list) or (isinstance(row.get("prompt"), str) and "question" not in row)
        )

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows, and what it carries along. Raises Unfit."""
        prompt, chosen, rejected = (row.get(side) for side in _SIDES)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
            images = _images(row)
            if images:
                raise Unfit(
                    f"has {len(images)} images beside a prompt of plain text, which does not say where they are"
                )
        elif prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
            prompt, chosen, rejected = _common(chosen, rejected)
        seen = Seen(_turns(prompt, _images(row)), _answer(chosen, "chosen"), _answer(rejected, "rejected"))
        if not seen.turns:
            raise Unfit("has no prompt")
        return seen, Baggage.read(row.get(COLUMN))


class _TRLWriter:
    def __init__(self, table: Table, has_media: bool, shelf: Shelf) -> None:
        self._table, self._has_media, self._shelf = table, has_media, shelf

    def add(self, row: PairRow, seen: Seen) -> None:
        values: Row = {
            "prompt": [self._message(turn.role, turn.parts) for turn in seen.turns],
            "chosen": [self._message("assistant", (seen.chosen,))],
            "rejected": [self._message("assistant", (seen.rejected,))],
            COLUMN: Baggage.of(row, seen).to_text(),
        }
        num_bytes = len(values[COLUMN])
        if self._has_media:
            values["images"] = [self._image(medium) for medium in seen.media]
            num_bytes += sum(len(image["bytes"] or b"") for image in values["images"])
        self._table.add(values, num_bytes)

    def _message(self, role: str, parts: Sequence[Part]) -> Row:
        if not self._has_media:
            return {"role": role, "content": "".join(part for part in parts if isinstance(part, str))}
        return {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
                for part in parts
            ],
        }

    def _image(self, medium: Medium) -> Row:
        if self._shelf.copies or medium.content is not None:
            return {"bytes": self._shelf.content_of(medium), "path": medium.name}
        return {"bytes": None, "path": str(self._shelf.path_of(medium.name))}


def _schema(has_media: bool) -> pa.Schema:
    content = _PARTS if has_media else _TEXT
    messages = pa.list_(pa.struct([("role", _TEXT), ("content", content)]))
    fields = [(side, messages) for side in _SIDES] + ([("images", _IMAGES)] if has_media else []) + [(COLUMN, _TEXT)]
    return pa.schema(fields).with_metadata({"huggingface": json.dumps(_features(has_media))})


def _features(has_media: bool) -> Row:
    """The columns as `datasets` knows them: it opens pictures by this."""
    text = {"dtype": "string", "_type": "Value"}
    content = {"feature": {"type": text, "text": text}, "_type": "List"} if has_media else text
    messages = {"feature": {"role": text, "content": content}, "_type": "List"}
    features: Row = dict.fromkeys(_SIDES, messages)
    if has_media:
        features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    return {"info": {"features": {**features, COLUMN: text}}}


def _images(row: Row) -> list[Medium]:
    value = row.get("images") if row.get("images") is not None else row.get("image")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [image_of(entry, place) for place, entry in enumerate(listed)]


def image_of(value: Any, place: int) -> Medium:
    """A picture as `datasets` stores it: a path, or bytes with or without one. Raises Unfit."""
    if isinstance(value, str):
        return Medium("image", value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        path = value.get("path")
        return Medium("image", path if isinstance(path, str) else "", content=value["bytes"])
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return Medium("image", value["path"])
    raise Unfit(f"image {place} is {str(value)!r:.60}; it must be a path, or bytes and a path")


def _turns(messages: Any, images: Sequence[Medium]) -> tuple[Turn, ...]:
    """The turns of a prompt. Where no message says where the pictures are, they stand before the first user's words,
    where TRL puts them. Raises Unfit for places and pictures of different number.
    """
    if not isinstance(messages, list):
        raise Unfit(f"prompt is {messages!r:.60}; it must be a list of messages")
    are_plain = all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
    count = sum(
        part.get("type") == "image"
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict)
    )
    if not are_plain and count != len(images):
        raise Unfit(f"has {count} image parts and {len(images)} images; their numbers must be equal")
    rest, found = iter(images), []
    for place, message in enumerate(messages):
        where = f"prompt[{place}]"
        if not isinstance(message, dict) or message.get("tool_calls"):
            raise Unfit(f"{where} is {message!r:.60}; it must be a message of a role and a content")
        role, content = role_of(message.get("role"), where), message.get("content")
        parts: list[Part] = []
        if isinstance(content, list):
            parts += [next(rest) if _is_image(part, where) else text_of(part.get("text"), where) for part in content]
        else:
            parts += rest if are_plain and role == "user" else ()
            parts.append(text_of(content, where))
        found.append(Turn(role, joined(parts)))
    if left := len(list(rest)):
        raise Unfit(f"has {left} images and no user turn for them")
    return tuple(found)


def _is_image(part: Any, where: str) -> bool:
    if not isinstance(part, dict) or part.get("type") not in ("image", "text"):
        raise Unfit(f"{where} holds {part!r:.60}; it must be an image or a text part")
    return bool(part["type"] == "image")


def _answer(value: Any, side: str) -> str:
    """The text of an answer: plain, or the only message of the assistant. Raises Unfit."""
    if isinstance(value, str):
        return text_of(value, side)
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        raise Unfit(f"{side} is {value!r:.60}; it must be text or one message of the assistant")
    turn = _turns(value, ())[0]
    if turn.role != "assistant":
        raise Unfit(f"{side} is a message of the {turn.role}; it must be one of the assistant")
    return turn.text


def _common(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The prompt that both conversations begin with, and what follows it in each."""
    place = 0
    while place < min(len(chosen), len(rejected)) - 1 and chosen[place] == rejected[place]:
        place += 1
    return chosen[:place], chosen[place:], rejected[place:]
