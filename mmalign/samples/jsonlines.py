"""Samples as JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from mmalign.chunked import CHUNK_ROWS, Chunk, digest_of
from mmalign.errors import DataError
from mmalign.jsontext import blocks_of_lines, numbered_lines, parse_json, texts_of
from mmalign.samples.checks import check_keys, shown, typed
from mmalign.types import MediaRef, Row, SampleRow

JSON_KEYS: Final = ("id", "image", "images", "video", "videos", "prompt", "messages", "system", "meta")


def json_chunks(path: Path) -> Iterator[Chunk]:
    """The samples of a file. Raises DataError with file:line."""

    def rows(first: int, lines: list[bytes]) -> Iterator[tuple[int, SampleRow]]:
        for number, text in texts_of(path, first, lines, DataError):
            yield number, sample_of(_object(text, f"{path}:{number}"), f"{path}:{number}")

    for first, lines in blocks_of_lines(path, DataError, CHUNK_ROWS):
        num = sum(map(bool, map(bytes.strip, lines)))
        yield Chunk(num, digest_of(b"json", b"".join(lines)), partial(rows, first, lines))


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and objects of a JSON-lines file; empty lines are passed over. Raises DataError with file:line."""
    for number, text in numbered_lines(path, DataError):
        yield number, _object(text, f"{path}:{number}")


def _object(text: str, where: str) -> Row:
    try:
        row = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}; need one JSON object per line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {shown(row)}, need one JSON object per line")
    return row


def sample_of(row: Row, where: str) -> SampleRow:
    """The sample that a JSON object describes; `where` is the file:line for messages. Raises DataError."""
    check_keys(row, JSON_KEYS, where)
    row = _without_turns(row, where)
    texts = {key: typed(row, key, str, where, "") for key in ("id", "prompt", "system")}
    meta = typed(row, "meta", dict, where, {})
    refs = (*_refs(row, "image", where), *_refs(row, "video", where))
    paths = [ref.path for ref in refs]
    if not paths and row.get("prompt") is None:
        raise DataError(f"{where}: needs 'image', 'images', 'video', 'videos', 'prompt' or 'messages'")
    if not paths and not texts["prompt"].strip():
        raise DataError(f"{where}: the prompt is empty; remove the line or fill it in")
    if "id" in row and row["id"] is not None and not texts["id"]:
        raise DataError(f"{where}: 'id' is empty; leave it out or give one")
    name = texts["id"] or derived_id(paths, texts["prompt"], texts["system"])
    return SampleRow(name, refs, texts["prompt"], texts["system"], meta)


def _refs(row: Row, kind: Literal["image", "video"], where: str) -> list[MediaRef]:
    """What a JSON object names under `kind` or its plural."""
    many = f"{kind}s"
    paths = [row[kind]] if row.get(kind) is not None else []
    if row.get(many) is not None:
        if paths:
            raise DataError(f"{where}: has both {kind!r} and {many!r}; keep one")
        paths = typed(row, many, list, where, [])
    for entry in paths:
        if not isinstance(entry, str) or not entry:
            what = "picture" if kind == "image" else "video"
            raise DataError(f"{where}: got {shown(entry)} for a {what}, need its path as text")
    return [MediaRef(entry, kind) for entry in paths]


def _without_turns(row: Row, where: str) -> Row:
    """The row with `messages`, one user turn after an optional system turn, told as `prompt` and `system`."""
    messages = row.get("messages")
    if messages is None:
        return row
    turns = messages if isinstance(messages, list) else []
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    if roles not in (["user"], ["system", "user"]):
        raise DataError(
            f"{where}: messages has the roles {roles}, need ['user'] or ['system', 'user']; cut the answers off"
        )
    words = {{"user": "prompt"}.get(turn["role"], "system"): turn.get("content") or "" for turn in turns}
    for key in words:
        if row.get(key):
            raise DataError(f"{where}: has both 'messages' and {key!r}; keep one")
    return {**row, **words}


def derived_id(paths: list[str], prompt: str, system: str) -> str:
    """The id of a sample without one: its media, and a digest of its words. The same in any order of rows."""
    words = hashlib.sha256(f"{system}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest()
    if not paths:
        return f"text-{words[:16]}"
    return "+".join(paths) + (f"#{words[:8]}" if prompt or system else "")
