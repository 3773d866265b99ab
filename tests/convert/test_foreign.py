"""Files that other tools or people made: what is right comes in, what is wrong is named with file and row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.convert.sources import open_source
from mmalign.errors import DataError
from mmalign.pairs import PairRow, read_pairs
from mmalign.types import Row
from tests.convert.cases import CLIPS, PICTURES, clip, convert, make_media, picture, text, turn

A, B, _ = PICTURES
USER = {"role": "user", "content": "What is <image>?"}
SAID = {"role": "assistant", "content": "A fish."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_media(tmp_path)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def taken(source: Path, **options: Any) -> list[PairRow]:
    convert(source, "mmalign", source.parent / "taken", **options)
    return read_pairs(source.parent / "taken" / "pairs.parquet")


def sharegpt(value: str, **more: Any) -> Row:
    said = {side: {"from": "gpt", "value": words} for side, words in (("chosen", "A fish."), ("rejected", "A crab."))}
    return {"conversations": [{"from": "human", "value": value}], **said, **more}


def swift(content: Any, **more: Any) -> Row:
    return {"messages": [{"role": "user", "content": content}, SAID], "rejected_response": "A crab.", **more}


def trl(prompt: Any, **more: Any) -> Row:
    return {"prompt": prompt, "chosen": [SAID], "rejected": [{**SAID, "content": "A crab."}], **more}


IMAGE = {"type": "image"}
SHOWN = [turn("user", picture(A), text("What?"))]
GOOD: list[tuple[str, Row, list[Row]]] = [
    ("llamafactory", sharegpt("<image>What?", images=[A]), SHOWN),
    ("llamafactory", sharegpt("<image>What?", images=A), SHOWN),
    (
        "llamafactory",
        sharegpt("Say <video>.", videos=[CLIPS[0]], images=[]),
        [turn("user", text("Say "), clip(), text("."))],
    ),
    ("swift", swift("<image>What?", images=[A]), SHOWN),
    ("swift", swift("What?", images=[A]), SHOWN),
    ("swift", swift("What?", images=[{"bytes": None, "path": A}]), SHOWN),
    ("swift", swift([{"type": "image", "image": A}, text("What?")]), SHOWN),
    ("swift", swift("What?", videos=A), [turn("user", clip(A), text("What?"))]),
    ("trl", trl([{"role": "user", "content": [IMAGE, text("What?")]}], images=[A]), SHOWN),
    ("trl", trl([{"role": "user", "content": "What?"}], images=[A]), SHOWN),
    ("trl", trl([{"role": "user", "content": "What?"}], image=A), SHOWN),
    ("trl", {"prompt": "What?", "chosen": "A fish.", "rejected": "A crab."}, [turn("user", text("What?"))]),
    (
        "rrpo",
        {"question": "<image>\nWhat?", "answer": "A fish.", "pred": "A crab.", "video": A},
        [turn("user", clip(A), text("What?"))],
    ),
    ("rlaif-v", {"question": "What?", "chosen": "A fish.", "rejected": "A crab.", "image": A, "idx": 4}, SHOWN),
]


@pytest.mark.parametrize(("name", "row", "context"), GOOD, ids=str)
def test_a_row_comes_in(name: str, row: Row, context: list[Row], root: Path) -> None:
    source = lines(root / "theirs.jsonl", row)
    assert open_source(source).format == name
    (found,) = taken(source)
    assert found.context == context
    assert (found.chosen, found.rejected, found.rejected_context) == ("A fish.", "A crab.", None)
    assert (found.id, found.method) == ("theirs-0", name)
    assert found.provenance == ({"idx": 4} if name == "rlaif-v" else {})


def test_a_conversation_without_a_prompt_of_its_own_is_split_where_the_answers_begin(root: Path) -> None:
    asked, other = {"role": "user", "content": "What?"}, {**SAID, "content": "A crab."}
    row = {"image": A, "image_corruption": B, "chosen": [asked, SAID], "rejected": [asked, other]}
    (found,) = taken(lines(root / "stic.jsonl", row))
    assert (found.context, found.chosen, found.rejected) == (SHOWN, "A fish.", "A crab.")


def test_a_rejected_side_with_its_own_media_or_words(root: Path) -> None:
    other = [USER, {**SAID, "content": "A crab."}]
    media = {"images": [A], "rejected_images": [B]}
    (first, second) = taken(
        lines(
            root / "s.jsonl",
            {"messages": [USER, SAID], "rejected_response": "A crab.", **media},
            {"messages": [USER, SAID], "rejected_messages": other, **media},
        )
    )
    assert first.rejected_context == second.rejected_context
    assert first.rejected_context == [turn("user", text("What is "), picture(B), text("?"))]


def test_phrases_of_rrpo_become_spans(root: Path) -> None:
    row = {"question": "What?", "video": CLIPS[0], "answer": "A red fish.", "pred": "A blue crab."}
    masked = {"answer_masked": "A <MASK>red</MASK> <MASK>fish</MASK>.", "pred_masked": "A <MASK>blue crab</MASK>."}
    (found,) = taken(lines(root / "r.jsonl", row | masked))
    assert [found.chosen[start:end] for start, end in found.chosen_spans] == ["red", "fish"]
    assert [found.rejected[start:end] for start, end in found.rejected_spans] == ["blue crab"]
    with pytest.raises(DataError, match="row 0: answer_masked is not answer"):
        convert(lines(root / "q.jsonl", row | masked | {"answer": "A fish."}), "mmalign", root / "q")


def png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("to", ["mmalign", "swift", "llamafactory", "trl"])
def test_pictures_inside_of_rlaif_v_become_files_that_names_cannot_mix_up(to: str, root: Path) -> None:
    rows = [
        {"question": f"Q{n}", "chosen": "yes", "rejected": "no", "image": {"bytes": png(n), "path": "0.jpg"}, "idx": n}
        for n in (1, 2, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "rlaif.parquet")
    convert(root / "rlaif.parquet", to, root / "out")
    convert(root / "out", "mmalign", root / "back")
    found = read_pairs(root / "back" / "pairs.parquet")
    assert [row.provenance["idx"] for row in found] == [1, 2, 1]
    paths = [row.media[0].path for row in found]
    assert paths[0] == paths[2] != paths[1]
    folder = root / ("back" if to in ("mmalign", "trl") else "out")
    folder = root / "out" if to == "mmalign" else folder
    assert [(folder / path).read_bytes() for path in paths] == [png(1), png(2), png(1)]


BAD: list[tuple[Any, str]] = [
    (sharegpt("<image><image>What?", images=[A]), "has 2 <image> marks and 1 images"),
    (sharegpt("What?", images=[A]), "has 0 <image> marks and 1 images"),
    (sharegpt("<video>What?"), "has 1 <video> marks and 0 videos"),
    (sharegpt("What?") | {"chosen": {"from": "gpt", "value": "<image>"}}, "the chosen answer holds the mark <image>"),
    (sharegpt("What?") | {"chosen": {"from": "human", "value": "x"}}, "it must be one turn of gpt"),
    (sharegpt("What?") | {"conversations": "x"}, "it must be a list of turns"),
    (
        sharegpt("What?") | {"conversations": [{"from": "judge", "value": "x"}]},
        "it must be a turn of system, human, gpt",
    ),
    (sharegpt("<image>What?", images=[4]), "images holds 4; it must hold paths"),
    (sharegpt("<image>What?", images=["../a.png"]), "leaves the data folder"),
    (sharegpt("<image>What?", images=["/etc/a.png"]), "is an absolute path"),
    (swift("<image><image>", images=[A]), "has 2 <image> marks and 1 images"),
    (swift("<image>", images=[A, A]), "has 1 <image> marks and 2 images"),
    (swift("What?", tools="[]"), "has tools, audios or objects"),
    (swift([{"type": "image", "image": A}], images=[A]), "in its messages and in images"),
    (swift([{"type": "audio", "audio": A}]), "it must be a text, image or video part"),
    (swift("What?") | {"messages": [{"role": "user", "content": "x"}]}, "its last turn must be the answer"),
    (swift("What?") | {"messages": []}, "messages is []; it must be a list of messages"),
    (swift("What?") | {"messages": [{"role": "judge", "content": "x"}, SAID]}, "the role is 'judge'"),
    (swift("What?") | {"rejected_response": None}, "rejected_response is None; it must be text"),
    (swift("What?") | {"rejected_response": [{"role": "user", "content": "x"}]}, "one message of the assistant"),
    (trl([{"role": "user", "content": [IMAGE]}], images=[A, A]), "has 1 image parts and 2 images"),
    (trl([{"role": "user", "content": [IMAGE]}]), "has 1 image parts and 0 images"),
    (trl("What?", images=[A]), "a prompt of plain text"),
    (trl([{"role": "user", "content": [{"type": "video"}]}]), "it must be an image or a text part"),
    (trl([{"role": "user", "content": "x"}], images=[4]), "image 0 is '4'"),
    (trl([{"role": "system", "content": "x"}], images=[A]), "has 1 images and no user turn"),
    (trl([]), "has no prompt"),
    (trl("x") | {"chosen": [SAID, SAID]}, "it must be text or one message"),
    (trl("x") | {"chosen": [{"role": "user", "content": "x"}]}, "chosen is a message of the user"),
    (trl("x", mmalign="{"), "its column mmalign cannot be read"),
    (trl("x", mmalign='{"version": 2}'), "it is of version 2, this one reads 1"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=str)
def test_a_wrong_row_is_named(row: Row, reason: str, root: Path) -> None:
    good = {key: value for key, value in row.items() if key in ("mmalign",)}
    first = sharegpt("x") if "conversations" in row else swift("x") if "messages" in row else trl("x")
    source = lines(root / "theirs.jsonl", first | dict.fromkeys(good, ""), row)
    with pytest.raises(DataError) as caught:
        convert(source, "mmalign", root / "out")
    assert str(caught.value).startswith(f"{source}: row 1: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert convert(source, "mmalign", root / "out", skips=True).unfit == 1


def test_an_absolute_path_below_the_media_root_becomes_relative(root: Path) -> None:
    (found,) = taken(lines(root / "t.jsonl", sharegpt("<image>", images=[str(root / B)])))
    assert [ref.path for ref in found.media] == [B]


def test_media_start_from_the_folder_that_is_named(root: Path) -> None:
    (root / "elsewhere").mkdir()
    source = lines(root / "elsewhere" / "t.jsonl", sharegpt("<image>", images=[A]))
    done = convert(source, "mmalign", root / "one")
    assert (done.missing, done.first_missing) == (1, A)
    assert convert(source, "mmalign", root / "two", root=root).missing == 0
