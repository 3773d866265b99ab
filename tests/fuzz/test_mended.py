"""What the fuzzer found, and what is too particular to be found by chance: one line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.errors import MAX_MESSAGE, DataError, MediaError, MMAlignError, RecipeError, StoreError
from mmalign.jsontext import MAX_DEPTH, MAX_LINE_BYTES
from mmalign.pairs import SCHEMA as PAIRS
from mmalign.pairs import pair_of_json, read_pairs
from mmalign.recipe.load import load_recipe
from mmalign.recipe.yamltext import MAX_BYTES, read_yaml
from mmalign.recorded import with_sha256
from mmalign.samples import ROOT_KEY, SCHEMA, data_folder, read_samples
from tests.fuzz.recipes import GOOD

TURN = {"role": "user", "content": [{"type": "text", "text": "q"}]}


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    text = str(MediaError("a\nb\x1b[2J\u202egnp\ud800 é 写 \u200d"))
    assert text == "a\\nb\\x1b[2J\\u202egnp\\ud800 é 写 \u200d"
    assert str(MediaError(text)) == text
    long = str(DataError("start" + "x" * 10**6 + "end"))
    assert len(long) == MAX_MESSAGE
    assert (long[:5], long[-3:]) == ("start", "end")
    assert len(str(DataError("\n" * 10**6))) == MAX_MESSAGE


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 10**5, "is nested deeper than 64 levels"),
        ('{"prompt": "x", "meta": {"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}}", "is nested deeper than 64"),
        ('{"prompt": "x", "meta": {"a": 1e999}}', "holds 1e999, more than a number can be"),
        ('{"prompt": "x", "meta": {"a": "\\ud83d"}}', "meta holds half a character (U+D83D)"),
        ('{"prompt": "x", "meta": {"a": ' + "9" * 5000 + "}}", "is not JSON (Exceeds the limit"),
        ('{"prompt": "' + "x" * MAX_LINE_BYTES + '"}', f"the line has more than {MAX_LINE_BYTES} bytes"),
        ('{"' + "k" * 10**6 + '": 1}', "unknown key 'kkk"),
    ],
)
def test_a_line_that_nothing_can_hold(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        list(read_samples(path))
    assert f"a.jsonl:2: {told}" in str(caught.value)


def test_depth_within_the_limit_and_whole_pairs_of_surrogates_are_good(tmp_path: Path) -> None:
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00", "meta": {"a": ' + deep + "}}\n")
    (row,) = read_samples(path)
    assert row.prompt == "😀"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weight": 10**400}, "weight is 1000"),
        ({"gap": -(10**400)}, "gap is -1000"),
        ({"seed": 2**70}, "seed is 1180591620717411303424"),
        ({"stage": -(2**31)}, "stage is -2147483648"),
        ({"values": {"a": 10**400}}, "values: a is 1000"),
        ({"provenance": ["x"]}, "provenance is ['x']; it must be an object"),
        ({"judgements": ["x"]}, "judgements is ['x']; it must be a list of objects"),
        ({"judgements": [{"value": 10**400}]}, "judgements is [{'value': 1000"),
        ({"context": [{"role": "tool", "content": []}]}, "context is [{'role': 'tool'"),
        ({"context": [{"role": "user", "content": [{"path": "a.png"}]}]}, "context is"),
        ({"context": [{"role": "user", "content": [{"type": "audio", "path": "a"}]}]}, "context is"),
        ({"context": [{"role": "user", "content": [{"type": "image", "path": "a", "sha256": 1}]}]}, "context is"),
        ({"context": [{"role": "user", "content": [{"type": "image", "path": "a", "corruptions": [1]}]}]}, "context"),
        (
            {"sides": {"a": {"text": "x", "context": [{"role": "user", "content": [{"type": "x"}]}]}}},
            "sides: a.context",
        ),
    ],
)
def test_pairs_that_nothing_can_hold(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"context": [TURN], "chosen": "a", "rejected": "b", **changes}) + "\n")
    with pytest.raises(StoreError) as caught:
        read_pairs(path)
    assert f"a.jsonl:1: {told}" in str(caught.value)


@pytest.mark.parametrize(
    "frames",
    [
        *(None, [], {}, {"numbers": [], "times": [], "fps": 1, "total": 9}),
        {"numbers": [-1], "times": [0], "fps": 1, "total": 9},
        {"numbers": [1, 1], "times": [0, 1], "fps": 1, "total": 9},
        {"numbers": [9], "times": [0], "fps": 1, "total": 9},
        {"numbers": [1, 2], "times": [0], "fps": 1, "total": 9},
        {"numbers": ["1"], "times": [0], "fps": 1, "total": 9},
        {"numbers": [1], "times": [0], "fps": 10**400, "total": 9},
        {"numbers": [1], "times": [0], "fps": 1, "total": None},
    ],
)
def test_frames_that_no_clip_has(frames: object, tmp_path: Path) -> None:
    part = {"type": "video", "path": "a.mkv", "frames": frames}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"context": [{"role": "user", "content": [part]}]}) + "\n")
    with pytest.raises(StoreError, match=r"a\.jsonl:1: context is"):
        read_pairs(path)
    part["frames"] = {"numbers": [0, 8], "times": [0, 1.5], "fps": 2, "total": 9}
    path.write_text(json.dumps({"context": [{"role": "user", "content": [part]}]}) + "\n")
    assert read_pairs(path)[0].media[0].frames is not None


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.yaml", "a.png"):
        os.mkfifo(tmp_path / name)
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(DataError, match="is not a file"):
            list(read_samples(tmp_path / name))
    with pytest.raises(RecipeError, match="is not a file"):
        load_recipe(tmp_path / "a.yaml")
    part = {"type": "image", "path": "a.png", "sha256": ""}
    row = pair_of_json({"context": [{"role": "user", "content": [part]}]})
    assert with_sha256([row], tmp_path) == [row]


def _samples(path: Path, root: bytes, sha256: str) -> Path:
    media = json.dumps([{"type": "image", "path": "a.png", "sha256": sha256}])
    table = pa.table({"id": ["a"], "media": [media], "prompt": [""], "system": [""], "meta": ["{}"]})
    pq.write_table(table.replace_schema_metadata({ROOT_KEY: root}), path)
    return path


def test_a_sample_file_reaches_other_folders_only_for_what_it_knows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    for root in (b"..", b"/etc", b"link", str(tmp_path).encode()):
        with pytest.raises(DataError, match=r"row 1: names a file of another folder without its SHA-256"):
            list(read_samples(_samples(folder / "a.parquet", root, "")))
        assert list(read_samples(_samples(folder / "a.parquet", root, "0" * 64)))
    for root in (b".", b"below"):
        assert list(read_samples(_samples(folder / "a.parquet", root, "")))
    with pytest.raises(DataError, match="which is no path"):
        data_folder(_samples(folder / "a.parquet", b"a\0b", ""))


@pytest.mark.parametrize(("kind", "error"), [("samples", DataError), ("pairs", StoreError)])
@pytest.mark.parametrize("shape", ["one text", "one text in all rows", "rows"])
def test_tables_that_unpack_to_gigabytes(kind: str, error: type[MMAlignError], shape: str, tmp_path: Path) -> None:
    from tests.fuzz.tables import bomb

    path = tmp_path / "a.parquet"
    path.write_bytes(bomb(kind, shape))
    assert path.stat().st_size < 2**20
    with pytest.raises(error, match=r"or a bomb|occurs|was given|lacks"):
        list(read_samples(path)) if kind == "samples" else read_pairs(path)


def test_a_column_twice_and_texts_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["id", "id"]), path)
    with pytest.raises(DataError, match="has the column 'id' twice"):
        list(read_samples(path))
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"id": wrong, "media": ["[]"]}), path)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_samples(path))
    assert set(SCHEMA.names) & set(PAIRS.names) == {"id", "media", "prompt"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "a0: &a0 [1, 1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
            "more than 20000",
        ),
        ("a: &a [*a]", ":1: not valid YAML (*a stands inside itself)"),
        ("[" * 10**5, "nested deeper than 32 levels"),
        ("a: 1\nb: 2\na: 3", ":3: not valid YAML (the key 'a' stands twice)"),
        ("a: 2001-99-99", "not valid YAML (month must be in 1..12)"),
        ("a: 0x" + "f" * 5000, "a whole number of more than 64 bits"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!python/object:os.system x", "could not determine a constructor for the tag"),
        (
            "model: {name: tiny}\nobjective: {name: dpo, beta: null}\nmethod: {name: stic}",
            "objective.beta: got null; leave",
        ),
        (
            "train: {epochs: null}\nobjective: {name: dpo}\nmethod: {name: stic}",
            "train.epochs: got null; leave the key",
        ),
        (
            "train: {lora: {rank: null}}\nobjective: {name: dpo}\nmethod: {name: stic}",
            "train.lora.rank: got null; leave",
        ),
        ('data: {images: "a\\0b"}\nobjective: {name: dpo}\nmethod: {name: stic}', "data.images: 'a\\x00b' is no path"),
        ("#" + "x" * MAX_BYTES, f"has more than {MAX_BYTES} bytes"),
        ("k" * 900 + ": 1", "unknown key"),
    ],
)
def test_recipes_that_stand_for_too_much(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text + "\n" + GOOD if "key" in told and "k" * 9 in text else text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert told in str(caught.value)


def test_aliases_and_merged_keys_within_bounds_are_good(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}
