"""Samples on disk: a folder of pictures or of videos, a file made by `mmalign prepare`, or JSON lines.

Rows are read one at a time and hold references; nothing is opened here. Paths of media start from the data folder
(`data_folder`). A path that leaves it is found when the media are opened, and only that sample is lost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from mmalign.chunked import SampleRows
from mmalign.errors import DataError
from mmalign.samples.checks import check_keys
from mmalign.samples.folder import (
    CLIP_SUFFIXES,
    PICTURE_SUFFIXES,
    FolderListing,
    folder_chunks,
    folder_names,
    list_clips,
    list_pictures,
)
from mmalign.samples.jsonlines import json_chunks, json_lines, sample_of
from mmalign.samples.table import ROOT_KEY, SCHEMA, recorded_root, table_chunks
from mmalign.tables import opened

__all__ = [
    "ROOT_KEY",
    "SCHEMA",
    "FolderListing",
    "check_keys",
    "data_folder",
    "json_lines",
    "list_clips",
    "list_pictures",
    "read_samples",
    "sample_of",
]


def read_samples(path: Path, limit: int | None = None, kind: Literal["image", "video"] = "image") -> SampleRows:
    """Rows of a folder, a sample file (Parquet) or JSON lines, in a fixed order; at most `limit`.

    Of a folder, `kind` says whether its pictures or its videos are meant. A row of JSON lines is `{"image": path}`,
    `{"images": [paths]}`, `{"video": path}` or `{"videos": [paths]}` and/or `{"prompt": text}`, with `id`, `system` and
    `meta` if wanted; `messages` with one user turn may stand for `prompt`. Where a row has both, its videos come after
    its pictures. Without `id` a row is called after its media and its words. Raises DataError with file and line for
    unknown keys, wrong types and ids given twice.
    """
    if path.is_dir():
        names = folder_names(path, kind)
        return SampleRows(partial(folder_chunks, names, kind), name=str(path), total=len(names), limit=limit)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with opened(path, DataError) as file:
            total = file.metadata.num_rows
        return SampleRows(partial(table_chunks, path), name=str(path), total=total, limit=limit)
    if suffix in (".jsonl", ".ndjson"):
        return SampleRows(partial(json_chunks, path), name=str(path), total=None, limit=limit)
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
            recorded = recorded_root(file)
        if recorded is not None:
            if "\0" in recorded:
                raise DataError(
                    f"{path}: its data folder is {recorded!r:.80}, which is no path; prepare the samples again"
                )
            return path.parent / recorded
    return path.parent
