"""Further answers and numbers of pairs on disk: written, read, made by methods, shown, and refused by row."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign import Answer, Completion, Pair, PairRow, Sample, method, read_pairs, write_pairs
from mmalign.engine import RunDir, generate
from mmalign.errors import StoreError
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.media.read import MediaLimits
from mmalign.pairs import SCHEMA
from mmalign.report.cards import card
from mmalign.report.pictures import Gallery
from mmalign.sides import AnswerRow, SideRow, ValueRow, laid_out, shape_of
from mmalign.types import Chat, Message, SampleRow

TURNS = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
ANSWER = st.builds(
    AnswerRow,
    text=TEXT,
    context=st.sampled_from([None, TURNS]),
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2).map(tuple),
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A leaf, none, a list of either, or a list of lists."""
    lists = st.lists(leaf | st.none(), min_size=1, max_size=3).map(tuple)
    return leaf | st.none() | lists | st.lists(lists | st.none(), min_size=1, max_size=3).map(tuple)


NAME = st.text("abc", min_size=1, max_size=3)


def row(**changes: Any) -> PairRow:
    made = PairRow(id="s#0.0", sample_id="s", method="m", context=TURNS, chosen="yes", rejected="no")
    return replace(made, **changes)


@given(
    sides=st.dictionaries(NAME, nested(ANSWER), max_size=3), values=st.dictionaries(NAME, nested(NUMBER), max_size=3)
)
def test_rows_round_trip(sides: dict[str, SideRow], values: dict[str, ValueRow]) -> None:
    made = row(sides=sides, values=values)
    stored = made.to_row()
    assert PairRow.from_row(stored) == made
    assert PairRow.from_row(stored).to_row() == stored
    assert set(json.loads(stored["sides"])) == set(sides)


@given(part=nested(NUMBER))
def test_what_is_laid_out_has_a_place_for_all(part: Any) -> None:
    shape = shape_of([part])
    places = laid_out(part, shape)
    size = 1
    for axis in shape:
        size *= axis
    assert len(places) == size
    leaves = [part] if not shape else [one for line in part for one in (line if isinstance(line, tuple) else [line])]
    assert [place for place in places if place is not None] == [leaf for leaf in leaves if leaf is not None]


def test_files_round_trip_and_old_files_are_read(tmp_path: Path) -> None:
    made = [
        row(sides={"answers": (AnswerRow(text="a"), AnswerRow(text="b", context=TURNS))}, values={"scores": (1, 2)})
    ]
    path = tmp_path / "pairs.parquet"
    write_pairs(path, made)
    assert read_pairs(path) == made
    assert json.loads(pq.read_table(path)["sides"][0].as_py()) == {
        "answers": [{"text": "a", "context": None}, {"text": "b", "context": TURNS}]
    }
    old = pq.read_table(path).drop_columns(["values", "sides"])
    pq.write_table(old, path)
    assert read_pairs(path) == [row()]
    empty = old.append_column("sides", pa.nulls(1, pa.string()))
    pq.write_table(empty, path)
    assert read_pairs(path) == [row()]


def written(path: Path, second: dict[str, Any]) -> Path:
    rows = [row().to_row(), {**row(id="t#0.0").to_row(), **second}]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in SCHEMA])), path)
    return path


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("sides", "{", r"sides is '\{'; it is not JSON"),
        ("sides", "[1]", r"sides is \[1\]; it must map names"),
        ("sides", '{"a": "text"}', r"""sides: a is 'text'; it must be an answer \{"text": \.\.\.,"""),
        ("sides", '{"a": [{"text": "x"}, {"words": "x"}]}', r"sides: a\[1\] is \{'words': 'x'\}; it must be an answer"),
        ("sides", '{"a": {"text": "x", "contxt": null}}', r"sides: a has the key 'contxt'"),
        ("sides", '{"a": {"text": "x", "context": "q"}}', r"sides: a\.context is 'q'; it must be a list of turns"),
        (
            "sides",
            '{"a": {"text": "x", "spans": [[1]]}}',
            r"sides: a\.spans is \[\[1\]\]; it must be a list of \[start",
        ),
        ("sides", '{"a": []}', r"sides: a is \[\]; lists hold one or more"),
        ("sides", '{"a": [[[{"text": "x"}]]]}', r"sides: a\[0\]\[0\] is .*lists of lists are the deepest"),
        ("sides", '{"a": [[{"text": "x"}], {"text": "y"}]}', r"sides: a holds lists beside what is no list"),
        ("sides", '{"chosen": {"text": "x"}}', r"sides: 'chosen' cannot be a name here; pairs have a column 'chosen'"),
        ("values", '{"a": "1"}', r"values: a is '1'; it must be a finite number"),
        ("values", '{"a": [1, true]}', r"values: a\[1\] is True; it must be a finite number"),
        ("values", '{"a": NaN}', r"values is '\{\"a\": NaN\}'; it is not JSON: NaN"),
        ("p", -0.5, r"p is -0\.5; it must be a probability, from 0 to 1"),
        ("weight", float("nan"), r"weight is nan; it must be a finite number, 0 or more"),
        ("values", '{"gap": 1}', r"values: 'gap' cannot be a name here"),
        ("context", '{"role": "user"}', r"context is \{'role': 'user'\}; it must be a list of turns"),
        ("rejected_context", '[{"role": "user", "content": "q"}]', r"rejected_context is .* must be a list of turns"),
    ],
)
def test_a_wrong_row_is_named_in_one_line(column: str, value: Any, told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "own.parquet", {column: value})
    with pytest.raises(StoreError, match=rf"own\.parquet: row 1 \(pair t#0\.0\): {told}") as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_columns_of_another_type_and_empty_ones_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "own.parquet", {"weight": None})
    with pytest.raises(StoreError, match=r"own\.parquet: row 1: column weight is empty; it must hold double"):
        read_pairs(path)
    table = pq.read_table(written(path, {}))
    texts = table.set_column(table.column_names.index("p"), "p", pa.array(["likely", "likely"]))
    pq.write_table(texts, path)
    with pytest.raises(StoreError, match=r"column p holds string; it must hold double"):
        read_pairs(path)
    whole = table.set_column(table.column_names.index("p"), "p", pa.array([1, 0]))
    pq.write_table(whole, path)
    assert [row.p for row in read_pairs(path)] == [1.0, 0.0]


def test_json_lines_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [
        {"context": TURNS, "chosen": "yes", "rejected": "no\u2028", "gap": None, "p": 1},
        {"id": "mine", "context": TURNS, "sides": {"answers": [{"text": "a"}]}, "values": {"scores": [1]}, "media": []},
        {"context": TURNS, "chosen": "yes", "chosen_spans": [[0, 1]], "rejected_context": None, "stage": 2},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    first, second, third = read_pairs(path)
    assert (first.id, first.rejected, first.p, first.method) == ("own-0", "no\u2028", 1, "own")
    assert (second.id, second.sides) == ("mine", {"answers": (AnswerRow(text="a"),)})
    assert (third.chosen_spans, third.rejected_context, third.stage) == (((0, 1),), None, 2)
    write_pairs(tmp_path / "pairs.parquet", [first, second, third])
    assert read_pairs(tmp_path / "pairs.parquet") == [first, second, third]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"Expecting property name"),
        ("[1]", r"\[1\] is no pair; it must be an object with context"),
        ('{"chosen": "x"}', r"is no pair; it must be an object with context"),
        ('{"context": [], "choosen": "x"}', r"unknown column 'choosen'; known are id, sample_id"),
        ('{"context": [], "chosen": 1}', r"chosen is 1; it must be str"),
        ('{"context": [], "p": true}', r"p is True; it must be int or float"),
        ('{"context": [], "p": 1.5}', r"p is 1\.5; it must be a probability, from 0 to 1"),
        ('{"context": [], "p": NaN}', r"NaN is not a JSON value"),
        ('{"context": [], "weight": -1}', r"weight is -1; it must be a finite number, 0 or more"),
        ('{"context": [], "weight": Infinity}', r"Infinity is not a JSON value"),
        ('{"context": [], "gap": 1e999}', r"holds 1e999, more than a number can be"),
        ('{"context": [], "stage": 1.5}', r"stage is 1\.5; it must be int"),
        ('{"context": [], "chosen_spans": [1]}', r"chosen_spans is \[1\]; it must be a list of \[start, end\]"),
        ('{"context": "q"}', r"context is 'q'; it must be a list of turns"),
        ('{"context": [], "sides": {"answers": ["a"]}}', r"sides: answers\[0\] is 'a'; it must be an answer"),
    ],
)
def test_a_wrong_json_line_is_named(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"context": TURNS}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(StoreError, match=rf"own\.jsonl:2: .*{told}") as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_float_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"context": TURNS, "weight": 2**70, "p": 1, "gap": 3}), encoding="utf-8")
    (row,) = read_pairs(path)
    write_pairs(tmp_path / "pairs.parquet", [row])
    assert read_pairs(tmp_path / "pairs.parquet")[0].weight == 2.0**70
    assert [type(value) for value in (row.p, row.weight, row.gap)] == [float] * 3


def test_json_lines_in_another_encoding_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps({"context": TURNS, "chosen": "Füße"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(StoreError, match=r"own\.jsonl:1: is not UTF-8"):
        read_pairs(path)


@method("listing", media="text", gives=("side:answers", "value:scores"))
class Listing:
    """Lists of answers with scores, and one in another context."""

    bad: bool = False

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        chat = sample.ask("q")
        answers = [Answer(Completion(text)) for text in ("a", "b", "c")]
        other = Chat((Message("user", ("other",)),))
        yield Pair(
            chat,
            Completion("yes"),
            Completion("no"),
            values={"scores": [1.0, 0.5, float("inf") if self.bad else 0.25], "user": 3},
            sides={"answers": answers, "rationale": Answer(Completion("so"), other, ((0, 1),)), "judged": None},
        )


def run(path: Path, made: Listing) -> Any:
    with RunDir(path) as directory:
        directory.begin({"seed": 0})
        return generate(made, [SampleRow("s", (), "q")], ScriptedLM(lambda chat: "x"), run=directory, data_root=path)


def test_a_method_gives_lists_and_numbers(tmp_path: Path) -> None:
    run(tmp_path, Listing())
    (made,) = read_pairs(tmp_path / "round-0" / "pairs.parquet")
    assert made.values == {"scores": (1.0, 0.5, 0.25), "user": 3}
    assert made.sides["answers"] == tuple(AnswerRow(text=text) for text in "abc")
    other = [{"role": "user", "content": [{"type": "text", "text": "other"}]}]
    assert made.sides["rationale"] == AnswerRow(text="so", context=other, spans=((0, 1),))
    assert made.sides["judged"] is None
    assert made.contexts == [made.context, other]
    shown = card(made, Gallery(tmp_path, MediaLimits()))
    assert ("Side answers", '["a", "b", "c"]') in shown.facts
    assert ("Value scores", "[1.0, 0.5, 0.25]") in shown.facts
    assert shown.numbers["user"] == 3


def test_a_number_that_is_none_goes_to_quarantine(tmp_path: Path) -> None:
    run(tmp_path, Listing(bad=True))
    assert read_pairs(tmp_path / "round-0" / "pairs.parquet") == []
    assert "values: scores[2] is inf" in (tmp_path / "quarantine.jsonl").read_text()


def test_lists_count_as_tuples() -> None:
    one = PairRow(
        id="p",
        sample_id="s",
        method="m",
        context=[],
        chosen="a",
        rejected="b",
        sides={"answers": [AnswerRow(text="a"), None]},  # type: ignore[dict-item]
        values={"scores": [1.0, [2.0]]},  # type: ignore[dict-item]
    )
    assert one.sides == {"answers": (AnswerRow(text="a"), None)}
    assert one.values == {"scores": (1.0, (2.0,))}
