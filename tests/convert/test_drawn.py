"""Damaged pictures and frames of clips are drawn for other tools, and are what they were when they come back."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.corrupt import apply, draw, reopen
from mmalign.errors import DataError
from mmalign.media.read import MediaLimits, open_ref
from mmalign.pairs import PairRow, write_pairs
from mmalign.tiny.clips import clips
from mmalign.tiny.film import write_film
from mmalign.types import Clip, MediaRef, Picture, Row
from tests.convert.cases import PICTURES, convert, make_media, pair, picture, text, there_and_back, turn

A, B, _ = PICTURES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_media(tmp_path / "media")


def damaged(root: Path, ref: MediaRef, name: str) -> Row:
    """What is on record of a medium below `root` once it is damaged."""
    media = open_ref(ref, root, MediaLimits())
    opened = apply(media, draw(name, random.Random(0)))
    return opened.ref.to_row()


@pytest.fixture
def shown(root: Path) -> PairRow:
    """As mDPO has it: the rejected answer looks at a damaged copy of the picture, and at another one."""
    other = [turn("user", damaged(root, MediaRef(A), "gaussian_noise"), text("What?"), picture(B, root))]
    return pair(turn("user", picture(A, root), text("What?"), picture(B, root)), rejected_context=other)


def test_a_damaged_picture_is_a_file_with_the_very_pixels(root: Path, shown: PairRow) -> None:
    assert there_and_back([shown], "swift", root.parent, root, copies=True) == [shown]
    row = json.loads((root.parent / "out" / "pairs.jsonl").read_text())
    assert row["images"] == [A, B]
    drawn, untouched = row["rejected_images"]
    assert untouched == B
    assert shown.rejected_context is not None
    expected = reopen(MediaRef.from_row(shown.rejected_context[0]["content"][0]), root, MediaLimits())
    assert isinstance(expected, Picture)
    with Image.open(root.parent / "out" / drawn) as found:
        assert np.array_equal(np.asarray(found), np.asarray(expected.image))


def test_a_damaged_picture_keeps_its_record_when_words_are_edited(root: Path, shown: PairRow) -> None:
    write_pairs(root.parent / "pairs.parquet", [shown])
    convert(root.parent / "pairs.parquet", "swift", root.parent / "out", root=root, copies=True)
    path = root.parent / "out" / "pairs.jsonl"
    row = json.loads(path.read_text())
    row["rejected_messages"][0]["content"] = "<image>Look: <image>"
    path.write_text(json.dumps(row))
    convert(path, "mmalign", root.parent / "back")
    (found,) = pq.read_table(root.parent / "back" / "pairs.parquet").to_pylist()
    (asked,) = json.loads(found["rejected_context"])
    assert shown.rejected_context is not None
    given = shown.rejected_context[0]["content"]
    assert asked["content"] == [given[0], text("Look: "), given[2]]
    assert json.loads(found["provenance"])["edited"] == ["rejected_context"]


@pytest.fixture
def filmed(root: Path) -> PairRow:
    """A pair about a clip of which five frames are shown, and of the same clip with others in their order."""
    (film,) = clips(1, seed=0, split="pairs")
    write_film(film, 8, root / "film.mkv")
    opened = open_ref(MediaRef("film.mkv", "video"), root, MediaLimits())
    assert isinstance(opened, Clip)
    return pair(turn("user", opened.ref.to_row(), text("What happens?"), picture(A, root)))


def test_frames_of_a_clip_go_to_trl_as_pictures_and_come_back_as_the_clip(root: Path, filmed: PairRow) -> None:
    assert there_and_back([filmed], "trl", root.parent, root, copies=True, frames=True) == [filmed]
    (row,) = pq.read_table(root.parent / "out" / "train.parquet").to_pylist()
    expected = open_ref(MediaRef.from_row(filmed.context[0]["content"][0]), root, MediaLimits())
    assert isinstance(expected, Clip)
    assert len(row["images"]) == len(expected.images) + 1
    for image, frame in zip(row["images"], expected.images, strict=False):
        with Image.open(io.BytesIO(image["bytes"])) as found:
            assert np.array_equal(np.asarray(found), np.asarray(frame))
    kinds = [part["type"] for part in row["prompt"][0]["content"]]
    assert kinds == ["image"] * len(expected.images) + ["text", "image"]


@pytest.mark.parametrize("damage", ["reverse", "drop_frames", "gaussian_noise"])
def test_frames_of_a_damaged_clip_are_those_that_were_shown(damage: str, root: Path, filmed: PairRow) -> None:
    part = damaged(root, MediaRef("film.mkv", "video"), damage)
    row = pair(turn("user", part, text("What happens?")))
    assert there_and_back([row], "trl", root.parent, root, copies=True, frames=True) == [row]
    (found,) = pq.read_table(root.parent / "out" / "train.parquet").to_pylist()
    expected = reopen(MediaRef.from_row(part), root, MediaLimits())
    assert isinstance(expected, Clip)
    first = Image.open(io.BytesIO(found["images"][0]["bytes"]))
    assert np.array_equal(np.asarray(first), np.asarray(expected.images[0]))


def test_damage_that_cannot_be_done_again_is_named(root: Path) -> None:
    write_pairs(
        root.parent / "pairs.parquet", [pair(turn("user", picture(A, corruptions=[{"name": "mud", "params": {}}])))]
    )
    with pytest.raises(DataError, match=r"row 0 .*mud"):
        convert(root.parent / "pairs.parquet", "swift", root.parent / "out", root=root, copies=True)
