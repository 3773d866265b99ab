"""The contexts of stored pairs, with their media opened again exactly as the method saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmalign.corrupt import reopen
from mmalign.errors import MediaError
from mmalign.media.read import MediaLimits
from mmalign.types import Chat, MediaRef, Message, Part, Row


def open_context(turns: Sequence[Row], data_root: Path, limits: MediaLimits, pair: str) -> Chat:
    """The chat of a pair row: media read from `data_root`, checked against their SHA-256, recorded damage done again.

    Raises MediaError naming the pair and the file when one cannot be opened or has changed since.
    """

    def opened(part: Row) -> Part:
        if part["type"] == "text":
            return str(part["text"])
        try:
            return reopen(MediaRef.from_row(part), data_root, limits)
        except MediaError as error:
            raise MediaError(f"pair {pair}: {error}") from error

    return Chat(tuple(Message(turn["role"], tuple(opened(part) for part in turn["content"])) for turn in turns))
