"""LLaMA-Factory's sharegpt ranking format: `pairs.json` and the entry of `dataset_info.json` that describes it.

Read are files that such an entry describes, in sharegpt or alpaca layout and with column names and tags of their own,
and files without an entry in the sharegpt layout with its usual names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmalign.atomic import write_text
from mmalign.convert.baggage import COLUMN, Baggage
from mmalign.convert.format import Format, Lines, Survey, Writer, texts_of
from mmalign.convert.marks import MARKS, filled, marked, names, refuse_marked_answers, refuse_marks
from mmalign.convert.seen import MediaKind, Medium, Seen, Unfit, refuse_contexts, refuse_odd_turns, text_of
from mmalign.convert.shelf import Shelf
from mmalign.errors import DataError
from mmalign.jsontext import parse_json
from mmalign.pairs import PairRow
from mmalign.types import Row

INFO = "dataset_info.json"
FILE = "pairs.json"
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}


@dataclass(frozen=True)
class LlamaFactory(Format):
    """The format; `columns`, `tags` and `formatting` are those of an entry of `dataset_info.json`."""

    name: ClassVar[str] = "llamafactory"
    title: ClassVar[str] = "LLaMA-Factory"

    formatting: str = "sharegpt"
    columns: Mapping[str, str] = field(
        default_factory=lambda: {"chosen": "chosen", "rejected": "rejected", "images": "images", "videos": "videos"}
    )
    tags: Mapping[str, str] = field(default_factory=dict)

    def check(self, seen: Seen) -> None:
        """Raises Unfit for a pair that LLaMA-Factory cannot be told of, or would drop or refuse."""
        refuse_contexts(seen, self.title)
        refuse_odd_turns(seen.turns, self.title, alternate=True)
        refuse_marks(seen, self.title)

    @contextmanager
    def writer(self, folder: Path, survey: Survey, shelf: Shelf) -> Iterator[Writer]:
        """Writes `pairs.json`, one row a line, and `dataset_info.json`."""
        kinds: list[MediaKind] = [kind for kind in MARKS if getattr(survey, f"has_{kind}s")]
        with Lines(folder / FILE, array=True) as lines:
            yield _LlamaFactoryWriter(lines, kinds)
        columns = {name: name for name in ("chosen", "rejected", *(f"{kind}s" for kind in kinds))}
        entry = {
            "file_name": FILE,
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", **columns},
        }
        write_text(folder / INFO, json.dumps({"mmalign": entry}, indent=2) + "\n")

    # Reading ----------------------------------------------------------------------------------------------------------

    @classmethod
    def described(cls, source: Path) -> tuple[Path, LlamaFactory] | None:
        """The data file of a folder with a `dataset_info.json`, or of a file beside one, and how it is read.

        None where nothing is described. Raises DataError, one line, for entries that are none or several.
        """
        info = (source if source.is_dir() else source.parent) / INFO
        if not info.is_file():
            return None
        try:
            entries = parse_json(info.read_text(encoding="utf-8"))
            entries = {name: entry for name, entry in entries.items() if entry.get("ranking") and "file_name" in entry}
        except (ValueError, AttributeError) as error:
            raise DataError(f"{info}: cannot be read ({error})") from None
        if not source.is_dir():
            entries = {name: entry for name, entry in entries.items() if entry["file_name"] == source.name}
            if not entries:
                return None
        if len(entries) != 1:
            told = ", ".join(entries) or "none"
            raise DataError(f"{info}: describes {len(entries)} files of pairs ({told}); name the data file itself")
        (entry,) = entries.values()
        beside = Shelf(info.parent)
        try:
            is_there = beside.has(name := str(entry["file_name"]))
        except Unfit:
            is_there = False
        if not is_there:
            raise DataError(f"{info}: its file_name is {entry['file_name']!r:.80}, no file beside it")
        formatting = entry.get("formatting", "alpaca")
        if formatting not in ("sharegpt", "alpaca"):
            raise DataError(f"{info}: formatting is {formatting!r}; sharegpt and alpaca are read")
        for key in ("columns", "tags"):
            given = entry.get(key, {})
            if not isinstance(given, dict) or not all(isinstance(named, str) for named in given.values()):
                raise DataError(f"{info}: {key} is {given!r:.80}; it must map names to names")
        return info.parent / name, cls(formatting, entry.get("columns", {}), entry.get("tags", {}))

    def knows(self, row: Row) -> bool:
        return "conversations" in row and isinstance(row.get("chosen"), dict)

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows, and what it carries along. Raises Unfit."""
        if self._of(row, "tools"):
            raise Unfit("has tools, which pairs cannot hold")
        texts = self._alpaca(row) if self.formatting == "alpaca" else self._sharegpt(row)
        media = {kind: [Medium(kind, name) for name in self._names(row, f"{kind}s")] for kind in MARKS}
        if self._of(row, "audios"):
            raise Unfit("has audios, which pairs cannot hold")
        seen = Seen(filled(texts, media), self._answer(row, "chosen"), self._answer(row, "rejected"))
        refuse_marked_answers(seen)
        return seen, Baggage.read(row.get(COLUMN))

    def _of(self, row: Row, column: str, default: str | None = None) -> Any:
        named = self.columns.get(column, default)
        return None if named is None else row.get(named)

    def _names(self, row: Row, column: str) -> list[str]:
        named = self.columns.get(column)
        if named is None and row.get(column):
            raise Unfit(f"has {column}, but its entry in {INFO} names no column of them")
        return [] if named is None else texts_of(row, named)

    def _tag(self, name: str) -> str:
        return self.tags.get(name, _TAGS[name])

    def _sharegpt(self, row: Row) -> list[tuple[str, str]]:
        column = self.columns.get("messages", "conversations")
        messages = row.get(column)
        if not isinstance(messages, list):
            raise Unfit(f"{column} is {messages!r:.60}; it must be a list of turns")
        roles = {self._tag(f"{role}_tag"): role for role in ROLES}
        found = [("system", text_of(system, "system"))] if (system := self._of(row, "system")) else []
        for place, turn in enumerate(messages):
            where = f"{column}[{place}]"
            told = turn.get(self._tag("role_tag")) if isinstance(turn, dict) else None
            if not isinstance(told, str) or told not in roles:
                raise Unfit(f"{where} is {turn!r:.60}; it must be a turn of {', '.join(roles)}")
            role = roles[told]
            if role == "system":
                found = []  # a turn stands above the column
            found.append((role, text_of(turn.get(self._tag("content_tag")), where)))
        return found

    def _alpaca(self, row: Row) -> list[tuple[str, str]]:
        found = [("system", text_of(system, "system"))] if (system := self._of(row, "system")) else []
        history = self._of(row, "history") or []
        for turn in history if isinstance(history, list) else [history]:
            if not isinstance(turn, list) or len(turn) != 2:
                raise Unfit(f"history holds {turn!r:.60}; it must hold [question, answer]")
            found += [("user", text_of(turn[0], "history")), ("assistant", text_of(turn[1], "history"))]
        asked = (self._of(row, "prompt", "instruction"), self._of(row, "query", "input"))
        return [*found, ("user", "\n".join(text_of(text, "instruction") for text in asked if text))]

    def _answer(self, row: Row, side: str) -> str:
        value = self._of(row, side, side)
        if self.formatting == "sharegpt":
            if not isinstance(value, dict) or value.get(self._tag("role_tag")) != self._tag("assistant_tag"):
                raise Unfit(f"{side} is {value!r:.60}; it must be one turn of {self._tag('assistant_tag')}")
            value = value.get(self._tag("content_tag"))
        return text_of(value, side)


class _LlamaFactoryWriter:
    def __init__(self, lines: Lines, kinds: Sequence[MediaKind]) -> None:
        self._lines, self._kinds = lines, kinds

    def add(self, row: PairRow, seen: Seen) -> None:
        values: Row = {
            "conversations": [{"from": ROLES[turn.role], "value": marked(turn)} for turn in seen.turns],
            "chosen": {"from": "gpt", "value": seen.chosen},
            "rejected": {"from": "gpt", "value": seen.rejected},
        }
        values |= {f"{kind}s": names(seen.turns, kind) for kind in self._kinds}
        self._lines.write(json.dumps({**values, COLUMN: Baggage.of(row, seen).to_text()}, ensure_ascii=False))
