"""The doors through which a file of a stranger comes in. Each takes a file, and lets in what it accepts of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mmalign.errors import MMAlignError
from mmalign.evaluate.items import labelled_items
from mmalign.media.frames import FrameChoice
from mmalign.media.image import PictureLimits
from mmalign.media.read import MediaLimits, open_media
from mmalign.media.video import ClipLimits
from mmalign.pairs import read_pairs, write_pairs
from mmalign.prepare import prepare_images, prepare_text, prepare_videos
from mmalign.recipe.load import load_recipe
from mmalign.recorded import with_sha256
from mmalign.samples import data_folder, read_samples
from mmalign.text.objects import Vocabulary
from mmalign.train.data.context import open_context
from mmalign.types import MediaRef, SampleRow
from tests.fuzz.corpus import Case
from tests.media.hostile import encoded, quarters

#: A damaged clip may name a time that takes long to reach; the default waits two minutes for it.
SECONDS = 20.0
LIMITS = MediaLimits(
    picture=PictureLimits(decode_seconds=SECONDS),
    clip=ClipLimits(max_frames=600, decode_seconds=SECONDS),
    frames=FrameChoice(num_frames=4),
)
WORDS = Vocabulary.load(None)

#: A picture outside of the data folder, which no file in it may reach.
SECRET = encoded(quarters(shade=201), "PNG")
SECRET_SUM = hashlib.sha256(SECRET).hexdigest()


class EscapedError(Exception):
    """Something outside of the data folder was opened."""


def furnish(folder: Path) -> None:
    """Put beside a file of rows what its paths may lead to: a good picture, links out, a loop and a pipe."""
    outside = folder.with_name("outside")
    outside.mkdir()
    (outside / "secret.png").write_bytes(SECRET)
    (folder / "sub").mkdir(parents=True)
    (folder / "good.png").write_bytes(encoded(quarters(), "PNG"))
    (folder / "out").symlink_to(outside)
    (folder / "link out.png").symlink_to(outside / "secret.png")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.png")


def _opened(rows: Iterable[SampleRow], root: Path) -> Iterator[MMAlignError]:
    """Open all media of the rows; gives the errors of those that are refused."""
    for row in rows:
        try:
            sample = open_media(row, root, LIMITS)
        except MMAlignError as error:
            yield error
            continue
        for media in sample.media:
            if media.ref.sha256 == SECRET_SUM:
                raise EscapedError(f"{row.id!r:.60} shows what lies outside of the data folder")


def _folder(case: Case, path: Path, kind: str) -> Iterator[MMAlignError]:
    root = path.parent
    try:
        rows = list(read_samples(root, kind="image" if kind == "picture" else "video"))
    except MMAlignError as error:  # the name is not one of this kind: asked for all the same
        yield error
        rows = [SampleRow("asked", (MediaRef(path.name, "image" if kind == "picture" else "video"),))]
    yield from _opened(rows, root)
    if case.number % 4 == 0:
        out = root.parent / "prepared.parquet"
        prepare, limits = (prepare_images, LIMITS.picture) if kind == "picture" else (prepare_videos, LIMITS.clip)
        prepare(root, out, limits=limits, workers=1)  # type: ignore[operator]
        yield from _opened(read_samples(out), data_folder(out))


def picture(case: Case, path: Path) -> Iterator[MMAlignError]:
    return _folder(case, path, "picture")


def clip(case: Case, path: Path) -> Iterator[MMAlignError]:
    return _folder(case, path, "clip")


def samples(case: Case, path: Path) -> Iterator[MMAlignError]:
    yield from _opened(read_samples(path), data_folder(path))
    if path.suffix == ".jsonl" and case.number % 3 == 0:
        prepare_text(path, path.parent.parent / "prepared.parquet")


def pairs(case: Case, path: Path) -> Iterator[MMAlignError]:
    rows = with_sha256(read_pairs(path), path.parent)
    written = path.parent.parent / "written.parquet"
    write_pairs(written, rows)
    assert read_pairs(written) == rows
    for row in rows:
        for context in row.contexts:
            if any(part.get("sha256") == SECRET_SUM for turn in context for part in turn["content"]):
                raise EscapedError("what lies outside of the data folder was read")
            try:
                chat = open_context(context, path.parent, LIMITS, row.id)
            except MMAlignError as error:
                yield error
                continue
            if any(media.ref.sha256 == SECRET_SUM for media in chat.media):
                raise EscapedError(f"{row.id!r:.60} shows what lies outside of the data folder")


def labels(case: Case, path: Path) -> Iterator[MMAlignError]:
    items = labelled_items(path, LIMITS.picture, WORDS)
    if any(media.ref.sha256 == SECRET_SUM for item in items for media in item.sample.media):
        raise EscapedError("a label shows what lies outside of the data folder")
    yield from ()


def recipe(case: Case, path: Path) -> Iterator[MMAlignError]:
    load_recipe(path)
    yield from ()


DOORS: dict[str, Callable[[Case, Path], Iterator[MMAlignError]]] = {
    "picture": picture,
    "clip": clip,
    "samples": samples,
    "pairs": pairs,
    "labels": labels,
    "recipe": recipe,
}
