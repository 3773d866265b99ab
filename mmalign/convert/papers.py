"""Data sets of papers that are read, not written: RLAIF-V and RRPO."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from mmalign.convert.baggage import Baggage
from mmalign.convert.seen import Medium, Seen, Turn, Unfit, joined, text_of
from mmalign.convert.trl import image_of
from mmalign.types import Row

_MASK = re.compile(r"</?MASK>")


class RLAIFV:
    """RLAIF-V (Yu et al. 2024, arXiv 2405.17220): a question about one picture, mostly as bytes in Parquet."""

    name: ClassVar[str] = "rlaif-v"

    def knows(self, row: Row) -> bool:
        return {"question", "chosen", "rejected", "image"} <= row.keys()

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows. Raises Unfit."""
        question = text_of(row.get("question"), "question").replace("<image>", "").strip()
        turn = Turn("user", joined((image_of(row.get("image"), 0), question)))
        return Seen((turn,), text_of(row.get("chosen"), "chosen"), text_of(row.get("rejected"), "rejected")), None

    def told(self, row: Row) -> dict[str, Any]:
        """What else a pair says of itself."""
        kept = ("idx", "origin_dataset", "origin_split", "ds_name", "image_path")
        return {"provenance": {name: row[name] for name in kept if isinstance(row.get(name), str | int)}}


class RRPO:
    """RRPO (Sarkar, Etemad 2025, arXiv 2504.12083): a question about one clip; `<MASK>` tags mark what differs."""

    name: ClassVar[str] = "rrpo"

    def knows(self, row: Row) -> bool:
        return {"question", "answer", "pred", "video"} <= row.keys()

    def read(self, row: Row) -> tuple[Seen, Baggage | None]:
        """What a row shows. Raises Unfit."""
        question = re.sub(r"\s*<(?:image|video)>\s*", "", text_of(row.get("question"), "question"))
        clip = Medium("video", text_of(row.get("video"), "video"))
        turn = Turn("user", joined((clip, question)))
        return Seen((turn,), text_of(row.get("answer"), "answer"), text_of(row.get("pred"), "pred")), None

    def told(self, row: Row) -> dict[str, Any]:
        """What else a pair says of itself: the phrases that differ. Raises Unfit."""
        kept = {name: row[name] for name in ("src", "sample_id") if isinstance(row.get(name), str | int)}
        return {
            "provenance": kept,
            "chosen_spans": _spans(row, "answer"),
            "rejected_spans": _spans(row, "pred"),
        }


def _spans(row: Row, side: str) -> tuple[tuple[int, int], ...]:
    """The places between `<MASK>` tags, in characters of the answer without them. Raises Unfit."""
    if row.get(f"{side}_masked") is None:
        return ()
    pieces = _MASK.split(text_of(row[f"{side}_masked"], f"{side}_masked"))
    if "".join(pieces) != row[side] or len(pieces) % 2 == 0:
        raise Unfit(f"{side}_masked is not {side} with <MASK> tags in pairs, so what differs cannot be told")
    spans, at = [], 0
    for place, piece in enumerate(pieces):
        if place % 2 and piece:
            spans.append((at, at + len(piece)))
        at += len(piece)
    return tuple(spans)
