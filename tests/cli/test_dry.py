"""What a dry run says of media: counts that are right, and pairs that could not be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.pairs import PairRow, write_pairs
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened, write_film
from mmalign.types import Chat, Clip, Message
from tests.models import tiny
from tests.train.rows import make_rows


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: {{name: stic}}\nobjective: {{name: dpo}}\ndata: {{images: {tmp_path}}}\n")
    return path


def with_pairs(root: Path, rows: Sequence[PairRow]) -> list[str]:
    write_pairs(root / "run" / "round-0" / "pairs.parquet", rows)
    return ["--output", str(root / "run"), "--dry-run"]


def test_pairs_are_counted_kind_by_kind(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [drawn] = clips(1)
    write_film(drawn, 4, tmp_path / "a.mkv")
    film: Clip = opened(drawn, 4, "a.mkv")
    about_clip = Chat((Message("user", (film, "Describe the video.")),)).to_rows()
    rows = make_rows(tmp_path, 5)
    rows += [replace(rows[0], id="film", context=about_clip)]
    rows += [replace(make_rows(tmp_path, 1, pictures=0)[0], id="words")]
    assert main(["train", str(recipe), *with_pairs(tmp_path, rows)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pair ")]
    assert [line.split(":")[0] for line in lines] == [
        *(f"pair s{index}#0.0 (pictures)" for index in range(3)),
        "pair film (clips)",
        "pair words (text)",
    ]
    assert [line.split(", ")[-1] for line in lines] == [
        "20 of them media",
        "16 of them media",
        "20 of them media",
        "32 of them media",
        "0 of them media",
    ]


def test_a_pair_that_cannot_be_trained_on_is_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tiny("internvl")
    built.processor.image_seq_length = 5
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    words = ["train", str(recipe), "--model.name", str(tmp_path / "model")]
    assert main([*words, *with_pairs(tmp_path, make_rows(tmp_path, 2))]) == 2
    error = capsys.readouterr().err
    assert "pair s0#0.0: " in error
    assert "placeholder tokens for media, but the model will compute" in error
    assert error.count("\n") == 1


def test_a_pair_over_the_length_is_told(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*with_pairs(tmp_path, make_rows(tmp_path, 1)), "--train.max_length", "20"]
    assert main(["train", str(recipe), *words]) == 0
    assert "20 of them media, over train.max_length (20)" in capsys.readouterr().out
