"""Rows and files of strangers: whatever stands in them ends in one line, and nothing is written beside the output."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.convert.baggage import Baggage
from mmalign.convert.records import records
from mmalign.errors import DataError, MMAlignError
from mmalign.pairs import PairRow, pair_to_json, read_pairs, write_pairs
from mmalign.sides import AnswerRow
from mmalign.tables import batches, opened
from tests.convert.cases import PICTURES, clip, convert, make_media, pair, picture, text, turn

NOISE = [{"name": "gaussian_noise", "params": {"sigma": 0.1, "seed": 1}}]
GIVEN = (
    pair(turn("user", picture(), text("What?"), clip()), chosen_spans=((0, 1),), judgements=[{"judge": "j"}]),
    pair(turn("user", picture(corruptions=NOISE), text("What?")), sides={"u": AnswerRow(text="t")}),
)
QUESTION = {"question": "q?", "chosen": "a", "rejected": "b", "image": "a.png", "idx": 3}
CLIP = {"question": "<video>q?", "answer": "a b", "pred": "a c", "video": "c.mkv", "answer_masked": "a <MASK>b</MASK>"}
PARTS = {"type": "image", "image": "a.png"}
SWIFT = {
    "messages": [{"role": "user", "content": [PARTS]}, {"role": "assistant", "content": "x"}],
    "rejected_response": [{"role": "assistant", "content": "y"}],
}
TRL = {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}],
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
    "images": ["a.png"],
}
ALPACA = {"instruction": "q", "input": "", "history": [["h", "i"]], "chosen": "a", "rejected": "b"}
INFO = {"mine": {"file_name": "rows.json", "ranking": True, "columns": {"history": "history"}, "tags": {}}}
#: What may stand anywhere in place of what should.
ODD = (None, True, -1, 2**70, 1.5, "", "a\0b", "/a\0b", "../../away.png", "x" * 300, "\ud800", "<image>")
ODDER = ([], [[]], [1], [[0, 2**40]], {}, {"a": 1}, {"type": "image"}, {"bytes": "x"}, {"path": "a.png"}, float("inf"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("hostile") / "media")


@pytest.fixture(scope="module")
def rows(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Any]]:
    """Rows of every format, those that carry a pair along among them."""
    folder = tmp_path_factory.mktemp("rows")
    write_pairs(folder / "pairs.parquet", GIVEN)
    for to in ("swift", "llamafactory"):
        convert(folder / "pairs.parquet", to, folder / to, root=root, copies=True)
    lines = (folder / "swift" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    array = json.loads((folder / "llamafactory" / "pairs.json").read_text(encoding="utf-8"))
    plain = {"rlaif-v": QUESTION, "rrpo": CLIP, "swift": SWIFT, "trl": TRL, "llamafactory": ALPACA}
    return [
        *(("swift", json.loads(line)) for line in lines),
        *(("llamafactory", row) for row in array),
        *(("mmalign", pair_to_json(row)) for row in GIVEN),
        *plain.items(),
    ]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value but the whole of it."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, part in inner for place in [(*at, key), *places(part, (*at, key))]]


def damaged(draw: st.DrawFn, value: Any) -> Any:
    """The value with something odd in one place, or without it; inside the pair that it carries, often."""
    value = deepcopy(value)
    if isinstance(value.get("mmalign"), str) and draw(st.booleans()):
        return value | {"mmalign": json.dumps(damaged(draw, json.loads(value["mmalign"])))}
    if all_places := places(value):
        *way, last = draw(st.sampled_from(all_places))
        inner = value
        for key in way:
            inner = inner[key]
        if draw(st.integers(0, 3)):
            inner[last] = draw(st.sampled_from((*ODD, *ODDER)))
        else:
            del inner[last]
    return value


def test_whatever_stands_in_a_row_is_taken_or_told_in_one_line(
    root: Path, rows: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        folder = tmp_path_factory.mktemp("case")
        given, row = data.draw(st.sampled_from(rows))
        row, info = data.draw(st.composite(damaged)(row)), None
        if row.keys() & {"instruction", "conversations"} and data.draw(st.booleans()):
            info = data.draw(st.composite(damaged)(INFO))
            (folder / "dataset_info.json").write_text(json.dumps(info))
        (folder / "rows.json").write_text(json.dumps([row]))
        source = folder / "rows.json"
        if given == "mmalign":
            source = folder / "rows.jsonl"
            source.write_text(json.dumps(row))
        before = sorted(folder.iterdir())
        to = data.draw(st.sampled_from(["mmalign", "trl", "llamafactory", "swift"]))
        try:
            convert(source, to, folder / "out", given=given, root=root, copies=data.draw(st.booleans()))
        except MMAlignError:
            assert sorted(folder.iterdir()) == before
        else:
            convert(folder / "out", "mmalign", folder / "back", root=root)

    check()


def carried(**changes: Any) -> str:
    """The text of a column `mmalign` with something else in its pair."""
    values = json.loads(Baggage(pair()).to_text())
    return json.dumps(values | {"pair": values["pair"] | changes})


@pytest.mark.parametrize(
    ("given", "row", "reason"),
    [
        ("rlaif-v", {}, "question is None; it must be text"),
        ("rlaif-v", QUESTION | {"image": "x" * 300 + ".png"}, "no such file below"),
        ("rlaif-v", QUESTION | {"image": "/a\0b"}, "holds a NUL character"),
        ("rrpo", {}, "question is None; it must be text"),
        ("rrpo", CLIP | {"video": None}, "video is None; it must be text"),
        ("llamafactory", ALPACA | {"history": 5}, "history holds 5"),
        ("llamafactory", {"conversations": [{"from": {}, "value": "q"}]}, r"conversations\[0\] is"),
        ("swift", SWIFT | {"mmalign": carried(id="\ud800")}, "holds half a character"),
        ("swift", SWIFT | {"mmalign": carried(provenance={"a": float("inf")})}, "Infinity is not a JSON value"),
        ("swift", SWIFT | {"mmalign": "[" * 100_000}, "is nested deeper"),
        ("swift", SWIFT | {"mmalign": carried(chosen_spans=[[0, 2**40]])}, "must be a list of .start, end."),
    ],
)
def test_what_cannot_be_held_is_told(given: str, row: Any, reason: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    if given == "llamafactory" and "history" in row:
        (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    with pytest.raises(DataError, match=f"row 0: .*{reason}"):
        convert(tmp_path / "rows.json", "mmalign", tmp_path / "out", given=given, root=root, copies=True)


@pytest.mark.parametrize("name", ["../../away.png", "{}/away.png"])
@pytest.mark.parametrize("where", ["context", "sides"])
def test_bytes_in_a_row_never_become_a_file_outside_of_the_output(
    name: str, where: str, root: Path, tmp_path: Path
) -> None:
    content, name = (root / PICTURES[0]).read_bytes(), name.format(tmp_path)
    bad = picture(name) | {"sha256": hashlib.sha256(content).hexdigest()}
    context = [turn("user", bad, text("q"))]
    if where == "context":
        baggage = Baggage(pair(*context))
    else:
        further = {"u": AnswerRow(text="t", context=context)}
        baggage = Baggage(pair(turn("user", picture(), text("q")), sides=further), ((picture(), (name,)),))
    row = TRL | {"images": [{"bytes": content, "path": name}], "mmalign": baggage.to_text()}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"leaves the data folder|is an absolute path"):
        convert(tmp_path / "rows.parquet", "mmalign", tmp_path / "deep" / "out", root=root)
    assert not list(tmp_path.rglob("away.png"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"a": 1}, {"a": 2}', "ends before row 2"),
        ('[{"a": 1}', "ends before row 1"),
        ('[{"a": 1},', "ends before row 1"),
        ('[{"a": 1}, {"a"', "row 1 is not JSON"),
        ('[{"a": 1} {"a": 2}]', "row 1 is not JSON .no comma"),
        ('[{"a": 1},]', "row 1 is not JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', "goes on after the end of its array"),
        ("[]" + " " * 40 + "x", "goes on after the end of its array"),
    ],
)
@pytest.mark.parametrize("step", [3, 2**20])
def test_no_row_of_an_array_is_lost_without_a_word(
    content: str, reason: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.convert.records._CHUNK", step)
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        list(records(tmp_path / "rows.json"))


def test_names_that_end_alike_are_not_mixed_up(root: Path, tmp_path: Path) -> None:
    """TRL's rows hold absolute paths, and `/data/sub/a.png` ends like `a.png`, too."""
    (root / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        (root / name).write_bytes((root / PICTURES[0]).read_bytes())
    both = [picture("a.png"), picture("sub/a.png")]
    given: list[PairRow] = [pair(turn("user", *media, text("Which?"))) for media in (both, both[::-1])]
    for folder, start in (("top", root), ("below", root / "sub")):
        (start / "sub").mkdir(exist_ok=True)
        (start / "sub" / "a.png").write_bytes((root / PICTURES[0]).read_bytes())
        write_pairs(tmp_path / folder / "pairs.parquet", given)
        convert(tmp_path / folder / "pairs.parquet", "trl", tmp_path / folder / "out", root=start)
        convert(tmp_path / folder / "out", "mmalign", tmp_path / folder / "back", root=start)
        assert read_pairs(tmp_path / folder / "back" / "pairs.parquet") == given


def test_a_picture_that_cannot_be_read_is_not_taken_for_an_output_that_cannot_be_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *args, **options)

    opens = Path.open
    write_pairs(tmp_path / "pairs.parquet", [pair(turn("user", picture(PICTURES[1])))])
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(DataError, match=r"b.png: cannot be read \(Permission denied\)"):
        convert(tmp_path / "pairs.parquet", "swift", tmp_path / "out", root=root, copies=True)


def test_rows_with_pictures_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.tables.BYTES_PER_BATCH", 50_000)
    numbers = range(40)
    content = [np.random.default_rng(n).bytes(10_000) for n in numbers]
    pq.write_table(pa.table({"n": list(numbers), "image": content}), tmp_path / "rows.parquet")
    with opened(tmp_path / "rows.parquet", DataError) as file:
        sizes = [batch.num_rows for batch in batches(file, ["n", "image"], tmp_path / "rows.parquet", DataError)]
    assert sum(sizes) == 40
    assert max(sizes) <= 5
    assert [(row["n"], row["image"]) for row in records(tmp_path / "rows.parquet")] == list(
        zip(numbers, content, strict=True)
    )


def test_two_files_of_one_name_are_not_taken_for_each_other(root: Path, tmp_path: Path) -> None:
    """A file changed while the pairs were made: some speak of the old one."""
    good = picture(PICTURES[0], root)
    write_pairs(tmp_path / "pairs.parquet", [pair(turn("user", part)) for part in (good, good | {"sha256": "0" * 64})])
    with pytest.raises(DataError, match=r"row 1 .* has changed since"):
        convert(tmp_path / "pairs.parquet", "swift", tmp_path / "out", root=root, copies=True)
