"""The whole loop on clips: drawn ones with the embedded model, real ones among broken files, other models' roads."""

import json
import shutil
from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.pairs import read_pairs
from mmalign.tiny.clips import clips
from mmalign.tiny.film import write_film
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = ROOT.parent / "shared" / "media" / "videos"
RECIPES = ROOT / "mmalign" / "tiny" / "recipes" / "video"
SMALL = ["--data.clips", "14", "--train.epochs", "1", "--train.batch_size", "4", "--evaluate.clips", "6"]


def table(run: Path) -> dict[str, dict[str, float]]:
    rows = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["rows"]
    return {row["name"]: row["values"] for row in rows}


def test_rrpo_from_drawn_clips_to_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["run", str(RECIPES / "rrpo.yaml"), *SMALL, "--output", str(run)]) == 0
    pairs = read_pairs(run / "round-0" / "pairs.parquet")
    assert len(pairs) > 4
    for pair in pairs:
        (ref,) = pair.media
        assert (ref.kind, ref.corruptions) == ("video", ())  # trained on the clean clip
        assert ref.frames is not None
        assert ref.frames.numbers == tuple(range(8))
        assert pair.chosen_spans
        assert pair.rejected_spans
        assert [entry["name"] for entry in pair.provenance["rejected_media"][0]["corruptions"]] == [
            "local_shuffle",
            "box_mask",
        ]
    assert json.loads((run / "evaluation.json").read_text())["task"] == "Describe the video in detail."
    measured = table(run)
    assert list(measured) == ["before", "after", "random signs", "SFT on chosen", "cut as short"]
    assert {"event_chair_i", "event_chair_s", "event_recall", "events", "words"} <= set(measured["after"])
    steps = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert abs(steps[0]["kl"]) < 1e-3  # the reference is where training starts
    assert steps[-1]["kl"] > 0
    assert "data:image/" in (run / "report.html").read_text(encoding="utf-8")


def test_temple_trains_stage_by_stage(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["run", str(RECIPES / "temple.yaml"), *SMALL, "--data.clips", "6", "--output", str(run)]
    assert main(words) == 0
    pairs = read_pairs(run / "round-0" / "pairs.parquet")
    assert {pair.stage for pair in pairs} == {0, 1, 2}
    assert {pair.provenance["ratio"] for pair in pairs if pair.stage == 0} == {8}  # easy first: most is damaged
    steps = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) >= 3
    assert list(table(run)) == ["before", "after"]


@pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"the real clips are not there: {VIDEOS}")
def test_real_clips_among_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("again.mkv", "bird.mkv"):
        shutil.copy(VIDEOS / "asl" / name, folder)
    (folder / "cut.mkv").write_bytes((VIDEOS / "asl" / "book.mkv").read_bytes()[:3000])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video")
    write_film(clips(1, 0, "dev")[0], 1, folder / "one.mkv")
    before = {path.name for path in folder.iterdir()}
    run = tmp_path / "run"
    words = ["run", str(ROOT / "recipes" / "video" / "stic.yaml"), "--data.videos", str(folder), "--output", str(run)]
    assert main([*words, "--generate.max_bad_share", "1", "--evaluate.clips", "0", "--data.num_frames", "8"]) == 0
    rows = [json.loads(line) for line in (run / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    bad = {row["id"]: row["reason"] for row in rows}
    assert {"empty.mp4", "text.mp4"} <= set(bad)
    assert all(reason.startswith(name) and "\n" not in reason for name, reason in bad.items())
    pairs = read_pairs(run / "round-0" / "pairs.parquet")
    assert pairs
    assert {pair.sample_id for pair in pairs} <= {"again.mkv", "bird.mkv", "one.mkv"} == before - set(bad)
    assert (run / "train" / "adapter").is_dir()

    samples = tmp_path / "samples.parquet"
    assert main(["prepare", "videos", str(folder), "--output", str(samples)]) == 0
    refused = (tmp_path / "samples.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["path"] for line in refused} >= {"empty.mp4", "text.mp4"}
    capsys.readouterr()
    assert (
        main(["generate", str(ROOT / "recipes" / "video" / "rrpo.yaml"), "--data.samples", str(samples), "--dry-run"])
        == 0
    )
    assert "again.mkv" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llava-onevision", "llava"])
def test_other_models_run_on_clips(name: str, tmp_path: Path) -> None:
    """Natively where the model takes video, frame by frame where it takes pictures only."""
    built = tiny(name)
    built.model.generation_config.eos_token_id = list(range(0, built.model.config.get_text_config().vocab_size, 12))
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    words = ["run", str(ROOT / "recipes" / "video" / "stic.yaml"), "--output", str(tmp_path / "run")]
    words += ["--model.name", str(tmp_path / "model"), "--data.clips", "3", "--data.num_frames", "4"]
    words += ["--method.temperature", "1.0", "--method.max_new_tokens", "48", "--train.max_length", "null"]
    words += ["--evaluate.clips", "2", "--train.lora.rank", "2"]
    assert main(words) == 0
    assert read_pairs(tmp_path / "run" / "round-0" / "pairs.parquet")
    assert not (tmp_path / "run" / "quarantine.jsonl").read_text(encoding="utf-8")
    assert list(table(tmp_path / "run"))[:2] == ["before", "after"]


def test_the_clip_demo_puts_the_methods_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--video", "--dry-run", "--output", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert [out.count(f"name: {name}\n") for name in ("rrpo", "temple", "dpo")] == [
        3,
        1,
        2,
    ]  # two methods, two objectives
    assert not (tmp_path / "none").exists()
    assert main(["demo", "--video", "--method", "apasi"]) == 2
    assert "there are dpo, rrpo, temple" in capsys.readouterr().err
