"""What travels beside the visible fields, in one column `mmalign` of text: all of the pair, for an exact way back.

Other tools read the columns they know by name, so they never see it. On the way back the visible fields win: what
another tool changed in them is taken, the rest comes from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from mmalign.convert.seen import Medium, Seen, Turn, Unfit, seen_of
from mmalign.jsontext import parse_json
from mmalign.pairs import PairRow, pair_of_json, pair_to_json
from mmalign.types import Row

COLUMN = "mmalign"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Baggage:
    """A pair, and which of its media were drawn for other tools: damaged pictures, and clips as frames.

    `drawn` holds for each such part the names of the pictures that stand for it.
    """

    row: PairRow
    drawn: tuple[tuple[Row, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, row: PairRow, seen: Seen) -> Self:
        """What a pair takes along that is shown to other tools as `seen`."""
        drawn: list[tuple[Row, tuple[str, ...]]] = []
        for medium in seen.media:
            if medium.part is None or medium.name == medium.part["path"]:
                continue
            if medium.frame and drawn[-1][0] == medium.part:
                drawn[-1] = (medium.part, (*drawn[-1][1], medium.name))
            else:
                drawn.append((medium.part, (medium.name,)))
        return cls(row, tuple(drawn))

    def to_text(self) -> str:
        """The text of the column."""
        values: dict[str, Any] = {"version": VERSION, "pair": pair_to_json(self.row)}
        if self.drawn:
            values["drawn"] = [{"part": part, "names": list(names)} for part, names in self.drawn]
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def read(cls, text: object) -> Self | None:
        """The inverse of `to_text`; None where there is no column. Raises Unfit."""
        if text is None or text == "":
            return None
        try:
            values: Any = parse_json(text) if isinstance(text, str) else text
            if values["version"] != VERSION:
                raise ValueError(f"it is of version {values['version']!r:.20}, this one reads {VERSION}")
            row = pair_of_json(values["pair"])
            return cls(row, tuple(_drawn(entry, row) for entry in values.get("drawn", ())))
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Unfit(f"its column {COLUMN} cannot be read ({reason:.160}); remove the column") from None

    def restored(self, seen: Seen) -> PairRow:
        """The pair that travelled, with what the visible fields say otherwise.

        A changed answer loses what spoke of the old words: spans, gap and judgements. Media that the pair knows keep
        their record, others come in by name. `provenance` says what was edited.
        """
        row, now, old = self.row, self.renamed(seen), seen_of(self.row, self._media_of)
        if now == old:
            return row
        edited = [side for side in ("chosen", "rejected") if getattr(now, side) != getattr(old, side)]
        changes: dict[str, Any] = {side: getattr(now, side) for side in edited}
        if edited:
            changes |= {"chosen_spans": (), "rejected_spans": (), "gap": None, "judgements": []}
        if now.turns != old.turns:
            edited.append("context")
            changes["context"] = self._rows_of(now.turns)
        if now.rejected_turns != old.rejected_turns:
            edited.append("rejected_context")
            changes["rejected_context"] = None if now.rejected_turns is None else self._rows_of(now.rejected_turns)
        return replace(row, **changes, provenance={**row.provenance, "edited": edited})

    def _media_of(self, part: Row) -> list[Medium]:
        names = next((names for drawn, names in self.drawn if drawn == part), None)
        return [Medium(part["type"], part["path"])] if names is None else [Medium("image", name) for name in names]

    @property
    def _known(self) -> dict[str, Row | None]:
        """What stands in a context for a medium of this name; None for all frames of a clip but the first."""
        parts = [part for context in self.row.contexts for turn in context for part in turn["content"]]
        found: dict[str, Row | None] = {
            part["path"]: part for part in parts if part["type"] != "text" and not part.get("corruptions")
        }
        for part, names in self.drawn:
            found |= dict.fromkeys(names) | {names[0]: part}
        return found

    def knows(self, medium: Medium) -> bool:
        """Whether the pair speaks of this medium by this name, and of these bytes where it has them."""
        row = self._known.get(medium.name)
        if row is None or medium.content is None or row["path"] != medium.name or not row.get("sha256"):
            return medium.name in self._known
        return bool(hashlib.sha256(medium.content).hexdigest() == row["sha256"])

    def renamed(self, seen: Seen) -> Seen:
        """The same with media by the names that the pair knows them by, where it does.

        An absolute path may lead to a file that the pair names relative to its data folder. Where all media are in the
        pair's own order, each goes by the name in its place, as one path may end like several names.
        """
        known, names = self._known, [medium.name for medium in seen_of(self.row, self._media_of).media]
        now = [medium.name for medium in seen.media]
        in_order = iter(names if len(now) == len(names) and all(map(_leads_to, now, names)) else ())

        def with_name(medium: Medium) -> Medium:
            ends = [name for name in known if _leads_to(medium.name, name)]
            return replace(medium, name=next(in_order, max(ends, key=len, default=medium.name)))

        return seen.with_media(with_name)

    def _rows_of(self, turns: Sequence[Turn]) -> list[Row]:
        known = self._known

        def rows(part: str | Medium) -> list[Row]:
            if isinstance(part, Medium) and part.name in known:
                row = known[part.name]
                return [] if row is None else [row]
            return [row_of(part)]

        return [{"role": turn.role, "content": [row for part in turn.parts for row in rows(part)]} for turn in turns]


def _leads_to(path: str, name: str) -> bool:
    return path == name or path.endswith(f"/{name}")


def _drawn(entry: Any, row: PairRow) -> tuple[Row, tuple[str, ...]]:
    """A part of the pair and the names of what was drawn of it. Raises ValueError."""
    part, names = entry["part"], entry["names"]
    if not any(part in turn["content"] for context in row.contexts for turn in context):
        raise ValueError("drawn tells of media that the pair has not")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("drawn must name pictures")
    return part, tuple(names)


def row_of(part: str | Medium) -> Row:
    """A part as a pair's context holds it."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return part.part or {"type": part.kind, "path": part.name, "sha256": ""}
