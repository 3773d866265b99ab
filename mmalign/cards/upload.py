"""What a push uploads: files and their content, as they will lie in the repository.

Only what is listed here leaves the machine: pairs, recipe and card, or weights, settings and card. Paths of the machine
are cut from all of it; media go only when asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mmalign.cards.private import hub_id, without_paths, without_paths_inside
from mmalign.cards.record import Record
from mmalign.cards.write import dataset_card, model_card
from mmalign.errors import MediaError, StoreError
from mmalign.media.files import safe_path
from mmalign.pairs import SCHEMA, PairRow, iter_pairs
from mmalign.report.files import read_facts
from mmalign.samples import ROOT_KEY

#: Files of a model folder that are uploaded; nothing else in it is.
_WEIGHTS = (".safetensors",)
_SETTINGS = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)
_PLAIN = (
    "tokenizer.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
)


@dataclass(frozen=True, slots=True)
class File:
    """A file of an upload: its path in the repository, and its bytes or where they lie."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def pair_files(record: Record, license: str | None, *, with_media: bool) -> list[File]:
    """A data set: pairs of every round, recipe, card, and the media where asked for. Raises StoreError."""
    if not record.pair_files or not record.counts.pairs:
        raise StoreError(f"{record.run}: has no pairs to upload; `mmalign generate RECIPE` makes them")
    media: dict[str, Path] = {}
    root = read_facts(record.run).data_root(record.run)
    files = []
    for path in record.pair_files:
        if with_media:
            media |= _media(iter_pairs(path), root)
        files.append(File(f"{path.parent.name}/{path.name}", _parquet(iter_pairs(path), with_media=with_media)))
    recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True).encode()
    card = dataset_card(record, license, has_media=with_media).encode()
    shown = [File(f"media/{name}", path) for name, path in sorted(media.items())]
    return [File("README.md", card), File("recipe.yaml", recipe), *files, *shown]


def model_files(record: Record, license: str | None) -> list[File]:
    """A model: weights and settings of the adapter or the whole model, and a card. Raises StoreError."""
    folder = record.model_folder
    if folder is None:
        raise StoreError(f"{record.run}: has no trained model to upload; `mmalign train RECIPE` makes one")
    files = [File("README.md", model_card(record, license).encode())]
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS or path.name in _PLAIN:
            files.append(File(path.name, path))
        elif path.name in _SETTINGS:
            files.append(File(path.name, _settings(path, record)))
    return files


def _settings(path: Path, record: Record) -> bytes:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
    if isinstance(values, dict) and "base_model_name_or_path" in values and (base := hub_id(record.model_name)):
        values["base_model_name_or_path"] = base
    return json.dumps(without_paths(values), ensure_ascii=False, indent=2).encode()


def _parquet(rows: Iterator[PairRow], *, with_media: bool) -> bytes:
    """The pairs as a file, without what judges and methods noted of this machine."""
    schema = SCHEMA.with_metadata({ROOT_KEY: b"../media"} if with_media else {})
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        while clean := [_cleaned(row).to_row() for row in islice(rows, 10_000)]:
            writer.write_table(pa.Table.from_pylist(clean, schema=schema))
    return stream.getvalue()


def _cleaned(row: PairRow) -> PairRow:
    told = {name: without_paths_inside(getattr(row, name)) for name in ("judgements", "provenance")}
    return replace(row, **told)


def _media(rows: Iterator[PairRow], root: Path) -> Iterator[tuple[str, Path]]:
    """The names of all media of the pairs, and where they lie. Raises StoreError for one that is not there."""
    for row in rows:
        for part in (part for context in row.contexts for turn in context for part in turn["content"]):
            if part["type"] == "text":
                continue
            try:
                path = safe_path(root, part["path"])
            except MediaError as error:
                raise StoreError(f"pair {row.id}: {error}") from None
            if not path.is_file():
                raise StoreError(f"pair {row.id}: {part['path']}: no such file below {root}; leave out --with-media")
            yield part["path"], path
