"""Samples on disk: a folder of pictures or of videos, a file made by `mmalign prepare`, or JSON lines.

Rows are read one at a time and hold references; nothing is opened here. Paths of media start from the data folder
(`data_folder`). A path that leaves it is found when the media are opened, and only that sample is lost.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.chunked import CHUNK_ROWS, Chunk, SampleRows, digest_of
from mmalign.errors import DataError
from mmalign.jsontext import blocks_of_lines, numbered_lines, parse_json, texts_of
from mmalign.tables import batches, opened, rows_of
from mmalign.types import MediaRef, Row, SampleRow

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

#: Columns of a sample file. Those behind `meta` tell what `mmalign prepare` saw and are null for text; `fps` and
#: `seconds` are null for pictures. `format` is a picture's format or a video's codec.
SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("duplicate_of", pa.string()),
    ]
)

#: Parquet metadata: the data folder, relative to the file where it lies below or above it.
ROOT_KEY: Final = b"mmalign.data_folder"

TEXTS: Final = ("id", "media", "prompt", "system", "meta")
_NEEDS: Final = {"str": "text", "list": "a list", "dict": "an object"}
JSON_KEYS: Final = ("id", "image", "images", "video", "videos", "prompt", "messages", "system", "meta")


def read_samples(path: Path, limit: int | None = None, kind: Literal["image", "video"] = "image") -> SampleRows:
    """Rows of a folder, a sample file (Parquet) or JSON lines, in a fixed order; at most `limit`.

    Of a folder, `kind` says whether its pictures or its videos are meant. A row of JSON lines is `{"image": path}`,
    `{"images": [paths]}`, `{"video": path}` or `{"videos": [paths]}` and/or `{"prompt": text}`, with `id`, `system` and
    `meta` if wanted; `messages` with one user turn may stand for `prompt`. Where a row has both, its videos come after
    its pictures. Without `id` a row is called after its media and its words. Raises DataError with file and line for
    unknown keys, wrong types and ids given twice.
    """
    if path.is_dir():
        names = _folder_names(path, kind)
        return SampleRows(partial(_folder_chunks, names, kind), name=str(path), total=len(names), limit=limit)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with opened(path, DataError) as file:
            total = file.metadata.num_rows
        return SampleRows(partial(_parquet_chunks, path), name=str(path), total=total, limit=limit)
    if suffix in (".jsonl", ".ndjson"):
        return SampleRows(partial(_json_chunks, path), name=str(path), total=None, limit=limit)
    if suffix in PICTURE_SUFFIXES:
        raise DataError(f"{path}: is a single picture; give the folder it lies in")
    if suffix in CLIP_SUFFIXES:
        raise DataError(f"{path}: is a single video; give the folder it lies in")
    raise DataError(
        f"{path}: need a folder of pictures or videos, a .parquet file of `mmalign prepare`, or a .jsonl file"
    )


def data_folder(path: Path) -> Path:
    """Where media paths of this source start: the folder itself, what a sample file names, or the file's own folder."""
    if path.is_dir():
        return path
    if path.suffix.lower() == ".parquet" and path.is_file():
        with opened(path, DataError) as file:
            recorded = _recorded_root(file)
        if recorded is not None:
            if "\0" in recorded:
                raise DataError(
                    f"{path}: its data folder is {recorded!r:.80}, which is no path; prepare the samples again"
                )
            return path.parent / recorded
    return path.parent


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


def _folder_names(folder: Path, kind: Literal["image", "video"]) -> list[str]:
    listing, other = (list_pictures, list_clips) if kind == "image" else (list_clips, list_pictures)
    found = listing(folder)
    if not found.files:
        what, key = ("pictures", "videos") if kind == "image" else ("videos", "images")
        num = len(other(folder).files)
        hint = f"; for its {num} {key if key == 'videos' else 'pictures'} set data.{key}" if num else ""
        raise DataError(f"{folder}: holds no {what} ({found.num_others} other files){hint}")
    # A name that is not UTF-8 can stand in no table; its file is refused by this spelling when it is opened.
    return [name if name.isascii() else name.encode("utf-8", "backslashreplace").decode() for name in found.files]


def _folder_chunks(names: Sequence[str], kind: Literal["image", "video"]) -> Iterator[Chunk]:
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


def _json_chunks(path: Path) -> Iterator[Chunk]:
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
        raise DataError(f"{where}: got {_shown(row)}, need one JSON object per line")
    return row


def sample_of(row: Row, where: str) -> SampleRow:
    """The sample that a JSON object describes; `where` is the file:line for messages. Raises DataError."""
    check_keys(row, JSON_KEYS, where)
    row = _without_turns(row, where)
    texts = {key: _typed(row, key, str, where, "") for key in ("id", "prompt", "system")}
    meta = _typed(row, "meta", dict, where, {})
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
        paths = _typed(row, many, list, where, [])
    for entry in paths:
        if not isinstance(entry, str) or not entry:
            what = "picture" if kind == "image" else "video"
            raise DataError(f"{where}: got {_shown(entry)} for a {what}, need its path as text")
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


def check_keys(row: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise DataError naming the nearest known key when a row has an unknown one."""
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{where}: unknown key {key!r:.100}, did you mean {near!r}? Known are {', '.join(known)}; "
                "other values go under 'meta'"
            )


def _typed(row: Row, key: str, kind: type, where: str, default: Any) -> Any:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key} is {_shown(value)}, need {_NEEDS[kind.__name__]}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    with opened(path, DataError) as file:
        names = file.schema_arrow.names
        check_keys(dict.fromkeys(names), tuple(SCHEMA.names), str(path))
        for name in names:
            kind = file.schema_arrow.field(name).type
            if name in TEXTS and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{path}: column {name} is {kind}, need string")
        if "id" not in names or "media" not in names:
            raise DataError(f"{path}: not a sample file, it needs columns id and media; `mmalign prepare` makes one")
        wanted = [name for name in TEXTS if name in names]
        is_apart = _is_apart(path, _recorded_root(file))

        def rows(first: int, batch: pa.RecordBatch) -> Iterator[tuple[int, SampleRow]]:
            for number, row in enumerate(rows_of(batch, path, DataError), first):
                yield number, _stored_sample(row, f"{path}: row {number}", is_apart)

        first = 1
        for batch in batches(file, wanted, path, DataError):
            content = batch.serialize().to_pybytes()
            digest = digest_of(b"table", repr(batch.schema).encode(), str(is_apart).encode(), content)
            yield Chunk(batch.num_rows, digest, partial(rows, first, batch))
            first += batch.num_rows


def _recorded_root(file: pq.ParquetFile) -> str | None:
    """The data folder as `mmalign prepare` wrote it down."""
    recorded = (file.schema_arrow.metadata or {}).get(ROOT_KEY)
    return None if recorded is None else str(recorded, "utf-8", "replace")


def _is_apart(path: Path, root: str | None) -> bool:
    """Whether a sample file names a data folder other than its own and those below it."""
    if root is None:
        return False
    return not Path(os.path.realpath(path.parent / root)).is_relative_to(os.path.realpath(path.parent))


def _stored_sample(row: Row, where: str, is_apart: bool) -> SampleRow:
    """The sample of a row. Of files in a folder apart from the sample file, only those whose content it knows."""
    if not row["id"]:
        raise DataError(f"{where}: 'id' is empty")
    media = _json_cell(row, "media", list, where, [])
    refs = []
    for entry in media:
        known = isinstance(entry, dict) and isinstance(entry.get("path"), str)
        if not known or entry.get("type") not in ("image", "video"):
            raise DataError(f'{where}: media holds {_shown(entry)}, need {{"type": "image" or "video", "path": ...}}')
        check_keys(entry, ("type", "path", "sha256"), where)
        if is_apart and not entry.get("sha256"):
            raise DataError(
                f"{where}: names a file of another folder without its SHA-256; run `mmalign prepare`, or put the "
                "sample file into the folder of its media"
            )
        refs.append(MediaRef(entry["path"], entry["type"], _typed(entry, "sha256", str, where, "")))
    meta = _json_cell(row, "meta", dict, where, {})
    return SampleRow(row["id"], tuple(refs), row.get("prompt") or "", row.get("system") or "", meta)


def _json_cell(row: Row, key: str, kind: type, where: str, default: Any) -> Any:
    text = row.get(key)
    if not text:
        return default
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: {key} {error}") from None
    return _typed({key: value}, key, kind, where, default)
