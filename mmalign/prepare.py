"""Look at all data once before a run: `mmalign prepare images`, `mmalign prepare videos` and `mmalign prepare text`.

All write a sample file (`mmalign.samples.SCHEMA`) and, beside it, what was refused and why. Files appear whole or not
at all.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.atomic import make_parent, writing_bytes
from mmalign.errors import DataError, MediaError
from mmalign.media.files import readable_name, safe_path
from mmalign.media.image import PictureLimits, inspect_picture
from mmalign.media.video import ClipLimits, inspect_clip
from mmalign.samples import (
    ROOT_KEY,
    SCHEMA,
    FolderListing,
    check_keys,
    json_lines,
    list_clips,
    list_pictures,
    sample_of,
)
from mmalign.types import MediaRef, Row, SampleRow

ROWS_PER_BATCH = 1000
_PLURAL = {"image": "pictures", "video": "videos"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSummary:
    """What a preparation took and what it did not. Duplicates of media are kept as samples, of prompts not."""

    output: Path
    num_samples: int
    num_rejected: int = 0
    num_duplicates: int = 0
    num_others: int = 0
    rejected: Path | None = None

    def __str__(self) -> str:
        facts = [f"{self.num_samples} samples -> {self.output}"]
        if self.num_rejected:
            facts.append(f"{self.num_rejected} refused -> {self.rejected}")
        if self.num_duplicates:
            facts.append(f"{self.num_duplicates} duplicates")
        if self.num_others:
            facts.append(f"{self.num_others} other files passed over")
        return "; ".join(facts)


def prepare_images(
    folder: Path,
    output: Path,
    *,
    prompt: str = "",
    limits: PictureLimits | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Open every picture below `folder` and write the good ones as samples to `output` (Parquet).

    A sample's id is the picture's POSIX path relative to the folder; rows come in the order of these paths. Bad files
    go to `<output stem>.rejected.jsonl`, one `{"path", "reason"}` a line. A picture with the bytes of an earlier one
    stays, with the earlier id in `duplicate_of`. At most `2 * workers` pictures are held at a time. `progress(done,
    total)` is called after each. Raises DataError when no picture can be used.
    """
    limits = limits or PictureLimits()

    def look(name: str) -> _Seen:
        facts = inspect_picture(safe_path(folder, name), name, limits)
        return _Seen(facts.width, facts.height, facts.format, facts.frames, facts.num_bytes, facts.sha256)

    return _prepare_folder(folder, output, "image", look, prompt, workers, progress)


def prepare_videos(
    folder: Path,
    output: Path,
    *,
    prompt: str = "",
    limits: ClipLimits | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Look into every video below `folder` and write the good ones as samples to `output` (Parquet).

    As `prepare_images`. All packets of a video are read and its first and last frame decoded; the columns hold its
    upright size, codec, number of frames, mean frames per second and length in seconds.
    """
    limits = limits or ClipLimits()

    def look(name: str) -> _Seen:
        facts = inspect_clip(safe_path(folder, name), name, limits)
        return _Seen(
            facts.width,
            facts.height,
            facts.codec,
            facts.frames,
            facts.num_bytes,
            facts.sha256,
            fps=facts.fps,
            seconds=facts.seconds,
        )

    return _prepare_folder(folder, output, "video", look, prompt, workers, progress)


def listed(folder: Path, output: Path, kind: Literal["image", "video"]) -> FolderListing:
    """What a preparation of a folder will look at. Raises DataError where it cannot begin."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; `mmalign prepare {kind}s` takes a folder of {_PLURAL[kind]}")
    check_output(output)
    listing = (list_pictures if kind == "image" else list_clips)(folder)
    if not listing.files and not listing.unreadable:
        raise DataError(f"{folder}: holds no {_PLURAL[kind]} ({listing.num_others} other files)")
    return listing


@dataclass(frozen=True, slots=True)
class _Seen:
    """What looking into a picture or video tells, as the columns of a sample file."""

    width: int
    height: int
    format: str
    frames: int
    bytes: int
    sha256: str
    fps: float | None = None
    seconds: float | None = None


def _prepare_folder(
    folder: Path,
    output: Path,
    kind: Literal["image", "video"],
    look: Callable[[str], _Seen],
    prompt: str,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> PrepareSummary:
    what = _PLURAL[kind]
    listing = listed(folder, output, kind)
    workers = workers or min(16, os.cpu_count() or 1)
    refused: list[Row] = [{"path": path, "reason": "the folder cannot be read"} for path in listing.unreadable]
    first: dict[str, str] = {}
    duplicates = 0

    def tried(name: str) -> _Seen | str:
        try:
            return look(name)
        except MediaError as error:
            return str(error)

    def rows() -> Iterator[Row]:
        nonlocal duplicates
        for done, (name, facts) in enumerate(zip(listing.files, seen, strict=True), 1):
            if progress is not None:
                progress(done, len(listing.files))
            if isinstance(facts, str):
                shown = readable_name(name)
                refused.append({"path": shown, "reason": readable_name(facts).removeprefix(f"{shown}: ")})
                continue
            twin = first.setdefault(facts.sha256, name)
            duplicates += twin != name
            yield {
                **_stored(SampleRow(name, (MediaRef(name, kind, sha256=facts.sha256),), prompt)),
                **asdict(facts),
                "duplicate_of": twin if twin != name else None,
            }

    rejected = output.with_name(f"{output.stem}.rejected.jsonl")
    metadata = {ROOT_KEY: _root_as_written(folder, output).encode()}
    with _whole(output) as stream, closing(_in_order(tried, listing.files, workers)) as seen:
        num_samples = _write_rows(stream, SCHEMA.with_metadata(metadata), rows())
        _write_rejected(rejected, refused)
        if not num_samples:
            raise DataError(f"{folder}: none of {len(refused)} {what} can be used; {rejected} says why")
    return PrepareSummary(
        output=output,
        num_samples=num_samples,
        num_rejected=len(refused),
        num_duplicates=duplicates,
        num_others=listing.num_others,
        rejected=rejected if refused else None,
    )


def prepare_text(file: Path, output: Path) -> PrepareSummary:
    """Write the prompts of a JSON-lines file as samples without media to `output` (Parquet).

    A line is `{"prompt": text}` or `{"messages": [{"role", "content"}, ...]}` with one user turn after an optional
    system turn; `id`, `system` and `meta` may stand beside. Without `id` a sample is called after a digest of its
    words, and later lines with the same words are left out and counted. Raises DataError with file:line, key, value
    and remedy.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; `mmalign prepare text` takes JSON lines")
    check_output(output)
    lines: dict[str, int] = {}
    duplicates = 0

    def rows() -> Iterator[Row]:
        nonlocal duplicates
        for line, row in json_lines(file):
            where = f"{file}:{line}"
            sample = _text_sample(row, where)
            if sample.id in lines:
                if row.get("id"):
                    raise DataError(f"{where}: id {sample.id!r} was given in line {lines[sample.id]} already")
                duplicates += 1
                continue
            lines[sample.id] = line
            yield _stored(sample)

    with _whole(output) as stream:
        num_samples = _write_rows(stream, SCHEMA, rows())
        if not num_samples:
            raise DataError(f"{file}: holds no prompts")
    return PrepareSummary(output=output, num_samples=num_samples, num_duplicates=duplicates)


def _text_sample(row: Row, where: str) -> SampleRow:
    check_keys(row, ("id", "prompt", "messages", "system", "meta"), where)
    if row.get("prompt") is None and row.get("messages") is None:
        raise DataError(f"{where}: needs either 'prompt' or 'messages'")
    sample = sample_of(row, where)
    if not sample.prompt.strip():
        raise DataError(f"{where}: the prompt is empty; remove the line or fill it in")
    return sample


def _stored(sample: SampleRow) -> Row:
    return {
        "id": sample.id,
        "media": json.dumps([ref.to_row() for ref in sample.media], ensure_ascii=False, sort_keys=True),
        "prompt": sample.prompt,
        "system": sample.system,
        "meta": json.dumps(dict(sample.meta), ensure_ascii=False, sort_keys=True),
    }


def _in_order(look: Callable[[str], _Seen | str], names: Iterable[str], workers: int) -> Generator[_Seen | str]:
    """Results in the order of `names`, computed by threads (decoding happens outside of Python's lock), few ahead."""
    ahead: deque[Future[_Seen | str]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for name in names:
            ahead.append(pool.submit(look, name))
            if len(ahead) == 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _root_as_written(folder: Path, output: Path) -> str:
    """The data folder relative to the sample file, so that both can move together; absolute where they lie apart."""
    top, place = folder.resolve(), output.resolve().parent
    apart = not (top.is_relative_to(place) or place.is_relative_to(top))
    return str(top) if apart else Path(os.path.relpath(top, place)).as_posix()


def check_output(output: Path) -> None:
    """Raise DataError unless a sample file can have this name."""
    if output.suffix.lower() != ".parquet":
        raise DataError(f"{output}: name the sample file with the ending .parquet")
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name a file in it, such as {output / 'samples.parquet'}")


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose file appears under its name only when everything is written and on the disk."""
    make_parent(path)
    with writing_bytes(path) as stream:
        yield stream


def _write_rows(stream: BinaryIO, schema: pa.Schema, rows: Iterable[Row]) -> int:
    count = 0
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            count += 1
            if len(batch) == ROWS_PER_BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return count


def _write_rejected(path: Path, refused: list[Row]) -> None:
    """Write the refused files; without any, remove the list of an earlier preparation."""
    if not refused:
        path.unlink(missing_ok=True)
        return
    with _whole(path) as stream:
        for row in refused:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
