"""What a source is told by: its columns, its `dataset_info.json`, or the caller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.convert.records import records
from mmalign.convert.sources import open_source
from mmalign.errors import DataError, StoreError
from mmalign.pairs import read_pairs, write_pairs
from mmalign.types import Row
from tests.convert.cases import convert, pair

ALPACA = {
    "ask": "What?",
    "more": "Tell.",
    "good": "A fish.",
    "bad": "A crab.",
    "before": [["Hi.", "Hello."]],
    "sys": "S",
}
COLUMNS = {"prompt": "ask", "query": "more", "chosen": "good", "rejected": "bad", "history": "before", "system": "sys"}
TALK = {
    "talk": [{"who": "u", "says": "What?"}],
    "up": {"who": "a", "says": "A fish."},
    "down": {"who": "a", "says": "A crab."},
}
TALKS = {
    "formatting": "sharegpt",
    "columns": {"messages": "talk", "chosen": "up", "rejected": "down"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "u", "assistant_tag": "a"},
}


def described(folder: Path, entry: Row, rows: list[Any], **others: Any) -> Path:
    (folder / "data.json").write_text(json.dumps(rows))
    info = {"mine": {"file_name": "data.json", "ranking": True, **entry}, **others}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def taken(source: Path, **options: Any) -> Any:
    folder = source if source.is_dir() else source.parent
    convert(source, "mmalign", folder / "taken", **options)
    return read_pairs(folder / "taken" / "pairs.parquet")


def roles(row: Any) -> list[tuple[str, str]]:
    return [(turn["role"], "".join(part["text"] for part in turn["content"])) for turn in row.context]


def test_an_entry_of_llamafactory_names_columns_and_tags(tmp_path: Path) -> None:
    (row,) = taken(described(tmp_path, TALKS, [TALK], unranked={"file_name": "x.json"}))
    assert (roles(row), row.chosen, row.rejected) == ([("user", "What?")], "A fish.", "A crab.")


def test_alpaca_is_read_with_system_prompt_and_history(tmp_path: Path) -> None:
    (row,) = taken(described(tmp_path, {"columns": COLUMNS}, [ALPACA]) / "data.json")
    assert roles(row) == [("system", "S"), ("user", "Hi."), ("assistant", "Hello."), ("user", "What?\nTell.")]
    assert (row.chosen, row.rejected) == ("A fish.", "A crab.")


@pytest.mark.parametrize(
    ("entry", "others", "reason"),
    [
        ({}, {"other": {"file_name": "data.json", "ranking": True}}, "describes 2 files of pairs"),
        ({"ranking": False}, {}, "describes 0 files of pairs"),
        ({"file_name": "../away.json"}, {}, "no file beside it"),
        ({"file_name": "away.json"}, {}, "no file beside it"),
        ({"formatting": "poem"}, {}, "formatting is 'poem'"),
    ],
)
def test_entries_that_do_not_serve_are_named(tmp_path: Path, entry: Row, others: Row, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(described(tmp_path, entry, [TALK], **others))


def test_media_without_a_column_of_their_own_are_not_lost_silently(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no column of them"):
        taken(described(tmp_path, TALKS, [TALK | {"images": ["a.png"]}]))


BOTH = {"prompt": "x", "chosen": "a", "rejected": "b", "messages": [], "rejected_response": "b"}


def test_what_looks_like_two_formats_is_asked_about(tmp_path: Path) -> None:
    source = tmp_path / "both.jsonl"
    source.write_text(json.dumps(BOTH))
    with pytest.raises(DataError, match="looks like trl and swift; give --from"):
        open_source(source)
    assert open_source(source, "trl").format == "trl"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"x": 1}', r"its first row \(x\) looks like no known format"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "[4]", "row 0 is 4; it must be an object"),
        ("a.jsonl", "{", "a.jsonl:1: is not JSON"),
        ("a.json", '[{"x": 1}, {', "looks like no known format"),
        ("a.json", "[{", "row 0 is not JSON"),
        ("a.json", '[{"x": NaN}]', "row 0 is not JSON: NaN"),
        ("a.json", "[" * 9999, "row 0 is n"),
        ("a.parquet", "no", "not a readable Parquet file"),
        ("a.txt", "no", "is no .parquet, .jsonl, .json file"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / name)


def test_folders_hold_one_file_or_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "away")
    with pytest.raises(DataError, match="holds no"):
        open_source(tmp_path)
    for name in ("b", "a"):
        write_pairs(tmp_path / f"{name}.parquet", [pair(id=name)])
    assert [row.id for row in taken(tmp_path)] == ["a", "b"]
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(DataError, match="holds 3 data files"):
        open_source(tmp_path)


def test_all_rounds_of_a_run_are_taken_in_order(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "recipe.yaml").write_text(f"data: {{images: {tmp_path}/pictures}}\n")
    with pytest.raises(StoreError, match="the run has no finished pairs"):
        open_source(tmp_path)
    for number in (10, 9, 0):
        write_pairs(tmp_path / f"round-{number}" / "pairs.parquet", [pair(id=str(number), round=number)])
    source = open_source(tmp_path)
    assert [make().row.round for _, make in source.pairs()] == [0, 9, 10]
    assert (source.format, source.root, source.total()) == ("mmalign", tmp_path / "pictures", 3)
    with pytest.raises(DataError, match="is a run directory"):
        open_source(tmp_path, "trl")


def test_arrays_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements of every length, cut by the ends of pieces at every place."""
    rows = [{"n": place, "text": "]},{é" * (place % 7)} for place in range(40)]
    for step, indent in ((1, None), (7, 1), (64, None), (10_000, 2)):
        monkeypatch.setattr("mmalign.convert.records._CHUNK", step)
        path = tmp_path / f"{step}.json"
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8-sig")
        assert list(records(path)) == rows
