"""What other tools' files look like exactly, held against their documented layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmalign.media.files import file_sha256
from mmalign.pairs import PairRow, write_pairs
from mmalign.types import Row
from tests.convert.cases import CLIPS, PICTURES, clip, convert, make_media, pair, picture, text, turn

A, B, _ = PICTURES
CONVERSATION = pair(
    turn("system", text("Be brief.")),
    turn("user", picture(A), text("What is "), text("there?")),
    turn("assistant", text("A fish.")),
    turn("user", text("And "), picture(B), text(" here, in "), clip(), text("?")),
)
WORDS = pair(turn("user", text("Say a word.")), id="t#0.0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_media(tmp_path / "media")


def written(rows: list[PairRow], to: str, root: Path, **options: bool) -> Path:
    write_pairs(root.parent / "pairs.parquet", rows)
    convert(root.parent / "pairs.parquet", to, root.parent / "out", root=root, **options)
    return root.parent / "out"


def without_baggage(row: Row) -> Row:
    assert set(json.loads(row["mmalign"])) <= {"version", "pair", "drawn"}
    return {key: value for key, value in row.items() if key != "mmalign"}


def test_llamafactory(root: Path) -> None:
    out = written([CONVERSATION, WORDS], "llamafactory", root)
    assert sorted(path.name for path in out.iterdir()) == ["dataset_info.json", "pairs.json"]
    assert json.loads((out / "dataset_info.json").read_text()) == {
        "mmalign": {
            "file_name": "pairs.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
                "images": "images",
                "videos": "videos",
            },
        }
    }
    rows = [without_baggage(row) for row in json.loads((out / "pairs.json").read_text(encoding="utf-8"))]
    answers = {"chosen": {"from": "gpt", "value": "A fish."}, "rejected": {"from": "gpt", "value": "A crab."}}
    assert rows == [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>What is there?"},
                {"from": "gpt", "value": "A fish."},
                {"from": "human", "value": "And <image> here, in <video>?"},
            ],
            **answers,
            "images": [A, B],
            "videos": [CLIPS[0]],
        },
        {"conversations": [{"from": "human", "value": "Say a word."}], **answers, "images": [], "videos": []},
    ]


def test_llamafactory_names_no_column_of_media_where_there_are_none(root: Path) -> None:
    out = written([WORDS], "llamafactory", root)
    columns = json.loads((out / "dataset_info.json").read_text())["mmalign"]["columns"]
    assert columns == {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    assert set(json.loads((out / "pairs.json").read_text())[0]) == {"conversations", "chosen", "rejected", "mmalign"}


def test_swift(root: Path) -> None:
    out = written([CONVERSATION, WORDS], "swift", root)
    assert [path.name for path in out.iterdir()] == ["pairs.jsonl"]
    rows = [without_baggage(json.loads(line)) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>What is there?"},
                {"role": "assistant", "content": "A fish."},
                {"role": "user", "content": "And <image> here, in <video>?"},
                {"role": "assistant", "content": "A fish."},
            ],
            "images": [A, B],
            "videos": [CLIPS[0]],
            "rejected_response": "A crab.",
        },
        {
            "messages": [{"role": "user", "content": "Say a word."}, {"role": "assistant", "content": "A fish."}],
            "images": [],
            "videos": [],
            "rejected_response": "A crab.",
        },
    ]


def test_swift_shows_the_rejected_side_its_own_picture_in_every_row(root: Path) -> None:
    other = pair(rejected_context=[turn("user", picture(B), text("What is there?"))])
    out = written([other, WORDS], "swift", root)
    rows = [without_baggage(json.loads(line)) for line in (out / "pairs.jsonl").read_text().splitlines()]
    asked = {"role": "user", "content": "<image>What is there?"}
    assert rows[0] == {
        "messages": [asked, {"role": "assistant", "content": "A fish."}],
        "images": [A],
        "rejected_messages": [asked, {"role": "assistant", "content": "A crab."}],
        "rejected_images": [B],
    }
    assert rows[1]["rejected_messages"][-1]["content"] == "A crab."
    assert "rejected_response" not in rows[1], "ms-swift drops rows where it is empty because others have it"
    assert rows[1]["rejected_images"] == []


def test_trl(root: Path) -> None:
    shown = pair(*CONVERSATION.context[:3], turn("user", text("And "), picture(B), text(" here?")))
    out = written([shown, WORDS], "trl", root)
    assert [path.name for path in out.iterdir()] == ["train.parquet"]
    first, second = (without_baggage(row) for row in pq.read_table(out / "train.parquet").to_pylist())
    image, answer = {"type": "image", "text": None}, {"chosen": "A fish.", "rejected": "A crab."}
    assert first == {
        "prompt": [
            {"role": "system", "content": [text("Be brief.")]},
            {"role": "user", "content": [image, text("What is there?")]},
            {"role": "assistant", "content": [text("A fish.")]},
            {"role": "user", "content": [text("And "), image, text(" here?")]},
        ],
        **{side: [{"role": "assistant", "content": [text(words)]}] for side, words in answer.items()},
        "images": [{"bytes": None, "path": str(root.resolve() / name)} for name in (A, B)],
    }
    assert second["images"] == []


def test_trl_has_plain_text_and_no_pictures_where_there_are_none(root: Path) -> None:
    (row,) = pq.read_table(written([WORDS], "trl", root) / "train.parquet").to_pylist()
    assert without_baggage(row) == {
        "prompt": [{"role": "user", "content": "Say a word."}],
        "chosen": [{"role": "assistant", "content": "A fish."}],
        "rejected": [{"role": "assistant", "content": "A crab."}],
    }


def test_the_same_input_gives_the_same_bytes(root: Path) -> None:
    first = (written([CONVERSATION], "swift", root) / "pairs.jsonl").read_bytes()
    convert(root.parent / "pairs.parquet", "swift", root.parent / "again", root=root)
    assert (root.parent / "again" / "pairs.jsonl").read_bytes() == first


@pytest.mark.parametrize("to", ["llamafactory", "swift", "mmalign"])
def test_media_are_copied_under_their_names_when_asked(to: str, root: Path) -> None:
    out = written([CONVERSATION], to, root, copies=True)
    for name in (A, B, CLIPS[0]):
        assert file_sha256(out / name) == file_sha256(root / name)
    assert not (out / PICTURES[2]).exists(), "no pair is about it"


@pytest.mark.parametrize("to", ["llamafactory", "swift"])
def test_datasets_reads_the_rows(to: str, root: Path) -> None:
    from datasets import load_dataset

    out = written([WORDS, CONVERSATION], to, root)
    file = next(path for path in out.iterdir() if path.name.startswith("pairs"))
    data = load_dataset("json", data_files=str(file), cache_dir=root.parent / "cache")["train"]
    assert data[1]["images"] == [A, B]
    assert isinstance(data[1]["mmalign"], str), "nothing of ours is taken for a structure of theirs"
