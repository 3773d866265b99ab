"""The contexts of stored pairs, with their media opened again exactly as the method saw them, or not opened at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from mmalign.corrupt import reopen
from mmalign.corrupt.framemap import FrameMap
from mmalign.corrupt.registry import find_corruption
from mmalign.errors import MediaError, RecipeError
from mmalign.media.read import MediaLimits
from mmalign.types import Chat, Clip, Media, MediaRef, Message, Part, Picture, Row


def open_context(turns: Sequence[Row], data_root: Path, limits: MediaLimits, pair: str) -> Chat:
    """The chat of a pair row: media read from `data_root`, checked against their SHA-256, recorded damage done again.

    Raises MediaError naming the pair and the file when one cannot be opened, has changed since, or has damage on record
    that cannot be done.
    """

    def opened(part: Row) -> Media:
        with record_named(part, pair):
            return reopen(MediaRef.from_row(part), data_root, limits)

    return _chat(turns, opened)


@contextmanager
def record_named(part: Row, pair: str) -> Iterator[None]:
    """Within the block what is wrong with a medium or its record becomes a MediaError naming pair and file."""
    try:
        yield
    except (MediaError, RecipeError) as error:
        raise MediaError(f"pair {pair}: {error}") from error
    except Exception as error:
        # A record of one's own that lacks a parameter, or has one of another kind, may fail in any way.
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MediaError(
            f"pair {pair}: {part.get('path')}: what is on record of it cannot be done again ({what})"
        ) from error


def outlined_context(turns: Sequence[Row]) -> Chat | None:
    """The chat of a pair row with `stand_in`s for media, which is rendered as the same text. Opens no file.

    None where a clip does not say which frames are shown of it.
    """
    parts = [part for turn in turns for part in turn["content"]]
    return None if any(part["type"] == "video" and "frames" not in part for part in parts) else _chat(turns, stand_in)


def stand_in(part: Row) -> Media:
    """An empty picture, or a clip of as many empty frames as are shown, in place of a file."""
    ref, blank = MediaRef.from_row(part), Image.new("RGB", (1, 1))
    if ref.kind == "image":
        return Picture(blank, ref)
    count = len(ref.frames.numbers) if ref.frames is not None else 1
    for corruption in ref.corruptions:
        if issubclass(find_corruption(corruption.name), FrameMap):
            count = len(corruption.params["frames"])
    return Clip((blank,) * count, tuple(map(float, range(count))), ref)


def _chat(turns: Sequence[Row], media: Callable[[Row], Media]) -> Chat:
    def shown(part: Row) -> Part:
        return str(part["text"]) if part["type"] == "text" else media(part)

    return Chat(tuple(Message(turn["role"], tuple(shown(part) for part in turn["content"])) for turn in turns))
