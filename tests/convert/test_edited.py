"""What another tool changed in the visible fields is taken; what it left alone comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.pairs import PairRow, read_pairs, write_pairs
from tests.convert.cases import PICTURES, clip, convert, make_media, pair, picture, text, turn

A, B, _ = PICTURES
FRAMES = {"numbers": [1], "times": [0.5], "fps": 2.0, "total": 4, "backend": "pyav"}
GIVEN = pair(
    turn("system", text("Be brief.")),
    turn("user", picture(A), text("What is there?"), clip(frames=FRAMES)),
    chosen_spans=((0, 1),),
    rejected_spans=((2, 3),),
    gap=0.5,
    p=0.75,
    judgements=[{"judge": "j", "value": 1.0, "reason": "", "raw": {}}],
    provenance={"seeds": [1]},
    values={"reference": [1.0, 2.0]},
)


def edited(folder: Path, to: str, change: Callable[[Any], None]) -> PairRow:
    """The pair that comes back after `change` was done to its row in another tool's file."""
    root = make_media(folder / "media")
    write_pairs(folder / "pairs.parquet", [GIVEN])
    convert(folder / "pairs.parquet", to, folder / "out", root=root)
    path = folder / "out" / ("pairs.json" if to == "llamafactory" else "pairs.jsonl")
    row = json.loads(path.read_text(encoding="utf-8"))
    change(row[0] if isinstance(row, list) else row)
    path.write_text(json.dumps(row), encoding="utf-8")
    convert(path, "mmalign", folder / "back", root=root)
    (found,) = read_pairs(folder / "back" / "pairs.parquet")
    return found


def kept(found: PairRow, *changed: str) -> None:
    """Every field is as before but for those that are named."""
    for name in PairRow.__slots__:
        if name not in (*changed, "provenance"):
            assert getattr(found, name) == getattr(GIVEN, name), name


ABOUT_WORDS = ("chosen_spans", "rejected_spans", "gap", "judgements")


@pytest.mark.parametrize(
    ("to", "side", "change"),
    [
        ("llamafactory", "chosen", lambda row: row["chosen"].update(value="A whale.")),
        ("llamafactory", "rejected", lambda row: row["rejected"].update(value="A whale.")),
        ("swift", "chosen", lambda row: row["messages"][-1].update(content="A whale.")),
        ("swift", "rejected", lambda row: row.update(rejected_response="A whale.")),
    ],
)
def test_an_edited_answer_is_taken_and_what_was_said_of_the_old_one_is_not(
    tmp_path: Path, to: str, side: str, change: Callable[[Any], None]
) -> None:
    found = edited(tmp_path, to, change)
    assert getattr(found, side) == "A whale."
    assert [getattr(found, name) for name in ABOUT_WORDS] == [(), (), None, []]
    assert found.provenance == {"seeds": [1], "edited": [side]}
    kept(found, side, *ABOUT_WORDS)


def test_an_edited_prompt_is_taken_and_its_media_keep_their_record(tmp_path: Path) -> None:
    found = edited(tmp_path, "swift", lambda row: row["messages"][1].update(content="<video>Who? <image>"))
    media = [part for part in GIVEN.context[1]["content"] if part["type"] != "text"]
    assert found.context == [GIVEN.context[0], turn("user", media[1], text("Who? "), media[0])]
    assert found.provenance["edited"] == ["context"]
    kept(found, "context")


def test_another_picture_comes_in_by_its_name(tmp_path: Path) -> None:
    found = edited(tmp_path, "llamafactory", lambda row: row.update(images=[B]))
    assert found.context[1]["content"][0] == picture(B)
    assert [ref.frames is None for ref in found.media] == [True, False]


def test_a_row_that_lost_the_column_comes_in_as_a_foreign_one(tmp_path: Path) -> None:
    found = edited(tmp_path, "swift", lambda row: row.pop("mmalign"))
    assert (found.id, found.method, found.p) == ("pairs-0", "swift", 1.0)
    assert [turn["role"] for turn in found.context] == ["system", "user"]


def test_an_untouched_row_is_the_same(tmp_path: Path) -> None:
    assert edited(tmp_path, "llamafactory", lambda row: None) == GIVEN
