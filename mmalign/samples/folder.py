"""Pictures or videos in a folder as samples; those in folders below it, too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from mmalign.chunked import CHUNK_ROWS, Chunk, digest_of
from mmalign.errors import DataError
from mmalign.types import MediaRef, SampleRow

#: File names that are taken for pictures, in any case of letters. HEIC cannot be opened and is refused by name.
PICTURE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".heic", ".heif"}
)

#: File names that are taken for videos, in any case of letters. A GIF is a picture or a video, as it is asked for.
CLIP_SUFFIXES: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv"}
    | {".asf", ".flv", ".3gp", ".3g2", ".ogv", ".ivf", ".vob", ".mxf"}
)


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What lies below a folder: files of the wanted kind by name, others counted, folders that could not be read."""

    files: list[str]
    num_others: int
    unreadable: list[str]


def list_pictures(folder: Path) -> FolderListing:
    """Pictures below a folder as sorted POSIX paths relative to it. Hidden files and folders count as others."""
    return _listing(folder, PICTURE_SUFFIXES)


def list_clips(folder: Path) -> FolderListing:
    """Videos below a folder, as `list_pictures` lists pictures."""
    return _listing(folder, CLIP_SUFFIXES)


def _listing(folder: Path, suffixes: frozenset[str]) -> FolderListing:
    found: list[str] = []
    unreadable: list[str] = []
    others = 0

    def note(error: OSError) -> None:
        unreadable.append(str(error.filename))

    for top, folders, files in os.walk(folder, onerror=note):
        others += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(top).relative_to(folder).as_posix()
        start = "" if below == "." else f"{below}/"
        for name in files:
            # A Path for each of a million names takes ten seconds.
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in suffixes:  # noqa: PTH122
                others += 1
            else:
                found.append(start + name)
    return FolderListing(sorted(found), others, unreadable)


def folder_names(folder: Path, kind: Literal["image", "video"]) -> list[str]:
    """Names of its pictures or videos, sorted. Raises DataError where there are none."""
    listing, other = (list_pictures, list_clips) if kind == "image" else (list_clips, list_pictures)
    found = listing(folder)
    if not found.files:
        what, key = ("pictures", "videos") if kind == "image" else ("videos", "images")
        num = len(other(folder).files)
        hint = f"; for its {num} {key if key == 'videos' else 'pictures'} set data.{key}" if num else ""
        raise DataError(f"{folder}: holds no {what} ({found.num_others} other files){hint}")
    # A name that is not UTF-8 can stand in no table; its file is refused by this spelling when it is opened.
    return [name if name.isascii() else name.encode("utf-8", "backslashreplace").decode() for name in found.files]


def folder_chunks(names: Sequence[str], kind: Literal["image", "video"]) -> Iterator[Chunk]:
    """The samples of `folder_names`, in order."""
    for first in range(0, len(names), CHUNK_ROWS):
        some = names[first : first + CHUNK_ROWS]
        yield Chunk(
            len(some),
            digest_of(kind.encode(), "\0".join(some).encode()),
            partial(_folder_rows, first + 1, some, kind),
        )


def _folder_rows(first: int, names: Sequence[str], kind: Literal["image", "video"]) -> Iterator[tuple[int, SampleRow]]:
    for number, name in enumerate(names, first):
        yield number, SampleRow(name, (MediaRef(name, kind),))
