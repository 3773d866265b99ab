"""Samples are read from folders, sample files and JSON lines; wrong rows are named by line, key and value."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.errors import DataError, MediaError
from mmalign.media.read import MediaLimits, open_media
from mmalign.samples import data_folder, list_pictures, read_samples
from mmalign.types import MediaRef, SampleRow
from tests.media.hostile import encoded, quarters, write_hostile_folder


def jsonl(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_a_folder_needs_no_preparation(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    expected = write_hostile_folder(root)
    rows = list(read_samples(root))
    assert [row.id for row in rows] == sorted(expected)
    assert all(row == SampleRow(row.id, (MediaRef(row.id),)) for row in rows)
    assert list(read_samples(root, limit=3)) == rows[:3]
    assert data_folder(root) == root


def test_listing_counts_what_it_passes_over(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "a/z.webp", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "x/.y/z.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listing = list_pictures(tmp_path)
    assert listing.files == ["a.jpg", "a/z.webp", "b.PNG"]
    # Two hidden folders count once each.
    assert listing.num_others == 4
    assert listing.unreadable == []


def test_links_to_folders_are_not_walked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert list_pictures(tmp_path).files == ["a/x.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(quarters(), "PNG"))
    (row,) = read_samples(tmp_path)
    row.id.encode("utf-8")
    with pytest.raises(MediaError, match="file name is not UTF-8"):
        open_media(row, tmp_path, MediaLimits())


def test_json_lines(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        "\ufeff" + json.dumps({"image": "a.jpg"}),
        "",
        {"id": "two", "images": ["a.jpg", "b/c.png"], "prompt": "Compare.", "system": "Be brief.", "meta": {"k": [1]}},
        {"prompt": "Hello", "image": None, "id": None},
        {"image": "a.jpg", "prompt": "What is it?"},
        {"image": "a.jpg", "prompt": "Where is it?"},
        {"image": "a.jpg", "messages": [{"role": "user", "content": "Why?"}]},
    )
    rows = list(read_samples(path))
    assert rows[0] == SampleRow("a.jpg", (MediaRef("a.jpg"),))
    assert rows[1] == SampleRow("two", (MediaRef("a.jpg"), MediaRef("b/c.png")), "Compare.", "Be brief.", {"k": [1]})
    assert rows[2].id.startswith("text-")
    assert rows[2].media == ()
    assert rows[3].id.startswith("a.jpg#")
    assert rows[5].prompt == "Why?"
    assert len({row.id for row in rows}) == 6
    assert data_folder(path) == tmp_path
    # The same row has the same id wherever it stands.
    moved = list(read_samples(jsonl(tmp_path, {"image": "a.jpg", "prompt": "Where is it?"})))
    assert moved[0].id == rows[4].id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "got [1], need one JSON object"),
        ('{"prompt": NaN}', "NaN is not a JSON value"),
        ('{"prompt": "a", "prompt": "b"}', "key 'prompt' stands twice"),
        ({"promt": "a"}, "unknown key 'promt', did you mean 'prompt'"),
        ({"prompt": 3}, "prompt is 3, need text"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({}, "needs 'image', 'images', 'video', 'videos', 'prompt' or 'messages'"),
        (
            {"image": "a.jpg", "messages": [{"role": "assistant", "content": "x"}]},
            "messages has the roles ['assistant']",
        ),
        ({"image": 3}, "got 3 for a picture"),
        ({"image": ""}, 'got "" for a picture'),
        ({"images": "a.jpg"}, 'images is "a.jpg", need a list'),
        ({"images": ["a.jpg", {}]}, "got {} for a picture"),
        ({"image": "a.jpg", "images": ["b.jpg"]}, "has both 'image' and 'images'"),
        ({"image": "a.jpg", "id": ""}, "'id' is empty"),
        ({"image": "a.jpg", "meta": []}, "meta is [], need an object"),
        ('{"prompt": "\\ud83d"}', "prompt holds half a character (U+D83D)"),
        ('{"image": "\\ud83d.jpg"}', "image holds half a character"),
        ({"id": "first", "prompt": "b"}, "id 'first' was given in line 1 already"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, row: object, message: str) -> None:
    path = jsonl(tmp_path, {"id": "first", "prompt": "a"}, "", row)
    rows = iter(read_samples(path))
    assert next(rows).id == "first"
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: is not UTF-8 \(byte 15\)"):
        list(read_samples(path))


def test_a_row_that_leaves_the_folder_loses_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    path = jsonl(tmp_path, {"image": "../secret.png"}, {"image": "http://h/x.png"}, {"image": "a.png"})
    reasons = []
    for row in read_samples(path):
        try:
            open_media(row, data_folder(path), MediaLimits())
        except MediaError as error:
            reasons.append(str(error))
    assert len(reasons) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such file or folder"),
        ("empty", r"holds no pictures \(1 other files\)"),
        ("a.jpg", "is a single picture"),
        ("rows.csv", "need a folder of pictures"),
        ("rows.parquet", "not a readable Parquet file"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    for file in ("a.jpg", "rows.csv", "rows.parquet"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        list(read_samples(tmp_path / name))


def parquet(tmp_path: Path, **columns: list[object]) -> Path:
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.table(columns), path)
    return path


REF = '[{"type": "image", "path": "a.png", "sha256": ""}]'


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "needs columns id and media"),
        ({"id": ["a"], "media": [REF], "promt": ["x"]}, "unknown key 'promt', did you mean 'prompt'"),
        ({"id": ["a"], "media": [[REF]]}, "column media is list<"),
        ({"id": [1], "media": [REF]}, "column id is int64, need string"),
        ({"id": ["a", ""], "media": [REF, REF]}, "row 2: 'id' is empty"),
        ({"id": ["a", "a"], "media": [REF, REF]}, "id 'a' was given in line 1"),
        ({"id": ["a"], "media": ["a.png"]}, "row 1: media is not JSON"),
        ({"id": ["a"], "media": ['["a.png"]']}, 'row 1: media holds "a.png"'),
        ({"id": ["a"], "media": ['[{"type": "sound", "path": "a"}]']}, "row 1: media holds"),
        ({"id": ["a"], "media": ['[{"type": "image", "path": "a", "corruptions": []}]']}, "unknown key 'corruptions'"),
        ({"id": ["a"], "media": [REF], "meta": ["[]"]}, "row 1: meta is [], need an object"),
    ],
)
def test_wrong_sample_files(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    path = parquet(tmp_path, **columns)
    with pytest.raises(DataError) as caught:
        list(read_samples(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_sample_files_of_others(tmp_path: Path) -> None:
    path = parquet(tmp_path, id=["a"], media=[REF], prompt=pa.array([None], pa.string()))
    assert list(read_samples(path)) == [SampleRow("a", (MediaRef("a.png"),))]
    assert data_folder(path) == tmp_path
