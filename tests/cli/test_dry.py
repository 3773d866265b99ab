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

VIDEO = Path(__file__).resolve().parents[2] / "recipes" / "video"


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


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a dry run says of the first samples."""
    assert main([*words, "--dry-run"]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if ".mkv: " in line or ".png: " in line]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a dry run that ends in a mistake of the user."""
    assert main([*words, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("rrpo", ["--method.window", "0"], "local_shuffle.window: got 0"),
        ("rrpo", ["--method.area", "[0.9, 0.1]"], "box_mask.area: got (0.9, 0.1)"),
        ("rrpo", ["--method.corruptions", "[clip_swap]"], "method.corruptions: 'clip_swap' needs a second clip"),
        ("rrpo", ["--method.max_new_tokens", "0"], "method.max_new_tokens: 0 must be 1 or more"),
        ("temple", ["--method.min_clips", "17"], "method.min_clips: 17 are more than num_clips"),
        ("videosavi", ["--method.min_gap", ".nan"], "method.temperatures and min_gap: two answers and a gap above 0"),
        ("videosavi", ["--method.length_ratio", "[2, 0.5]"], "method.length_ratio: (2.0, 0.5) must be"),
        ("rrpo", ["--data.scenes", "2"], "scene-00000.png is a picture; method rrpo takes videos only"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_line(
    name: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(["run", str(VIDEO / f"{name}.yaml"), *words], capsys)


def test_damage_that_no_sample_can_have_is_one_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.scenes", "2", "--method.corruptions", "[local_shuffle]", "--method.p_bad_prompt", "0"]
    assert "local_shuffle: is one of videos, scene-00000.png is a picture" in refusal(
        ["generate", str(recipe), *words], capsys
    )


def test_prompts_are_one_line_each_and_short(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(["generate", str(VIDEO / "temple.yaml"), "--data.clips", "2"], capsys)
    assert len(lines) == len(set(lines)) == 2 * 3  # of two samples: a part, two parts, and all orders of the whole
    assert all(len(line.partition("of them media: ")[2]) <= 100 for line in lines)
    assert lines[2].startswith("temple, clip-00000.mkv: ")
    assert "of the clips of one video, in order. 1. There is" in lines[2]


def test_a_method_that_ends_before_a_pair_says_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(VIDEO / "videosavi.yaml"), "--data.clips", "1"]
    assert shown(words, capsys)[-1] == (
        "videosavi, clip-00000.mkv: ends here with scripted answers (the model wrote no usable question)"
    )
    words = ["generate", str(VIDEO / "temple.yaml"), "--data.clips", "1", "--method.kinds", "[reverse]"]
    assert shown(words, capsys)[-1].endswith("no pair from scripted answers (reverse: the damage cannot be seen)")
    words = ["generate", str(VIDEO / "temple.yaml"), "--data.clips", "1", "--data.num_frames", "7"]
    assert "fewer than 8 frames, 4 parts of 2" in shown(words, capsys)[-1]


def test_an_own_method_that_fails_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from mmalign import method\n\n@method('own')\nclass Own:\n"
        "    async def pairs(self, sample, lm, rng):\n        yield [][0]\n"
    )
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"method: {{name: '{own}:Own'}}\nobjective: {{name: dpo}}\ndata: {{scenes: 1}}\n")
    [line] = shown(["generate", str(recipe)], capsys)
    assert line.endswith("fails here with scripted answers (IndexError: list index out of range (own.py:6))")


def test_data_that_cannot_be_used_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(22):
        (videos / f"{number:02}.mp4").write_text("no video")
    words = ["run", str(VIDEO / "rrpo.yaml"), "--data.videos", str(videos)]
    assert "none of the first 20 of 22 samples can be used; the first: 00.mp4: " in refusal(words, capsys)
    for number in range(2, 22):
        (videos / f"{number:02}.mp4").unlink()
    assert "none of its 2 samples can be used; the first: 00.mp4: " in refusal(words, capsys)
    [drawn] = clips(1)
    write_film(drawn, 4, videos / "good.mkv")
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would be quarantined: ") == 2
    (tmp_path / "words.jsonl").write_text('{"prompt": "What happens?"}\n')
    words = ["run", str(VIDEO / "rrpo.yaml"), "--data.samples", str(tmp_path / "words.jsonl")]
    assert "the sample has no media; method rrpo takes videos only" in refusal(words, capsys)
