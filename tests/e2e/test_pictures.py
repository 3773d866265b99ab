"""The whole loop on pictures with the embedded model: pairs, training, controls, numbers and page."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.pairs import read_pairs
from tests.media.hostile import write_hostile_folder
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "mmalign" / "tiny" / "recipes" / "self_consistency.yaml"
SMALL = ["--data.scenes", "16", "--method.samples", "4", "--train.epochs", "1", "--evaluate.scenes", "10"]
#: Bytes of a journal that holds its tables and at most a few short rows.
EMPTY_JOURNAL = 40_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loop") / "run"
    assert main(["run", str(RECIPE), *SMALL, "--output", str(path)]) == 0
    return path


def test_a_run_leaves_everything_that_the_readme_names(run: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listing = readme.partition("runs/mine/\n")[2].partition("```")[0]
    names = [line.split()[0] for line in listing.splitlines() if line.startswith("  ")]
    assert len(names) >= 7
    for name in names:
        assert (run / name).exists(), name


def test_pairs_say_how_they_came_to_be(run: Path) -> None:
    pairs = read_pairs(run / "round-0" / "pairs.parquet")
    assert pairs
    for pair in pairs:
        assert pair.chosen != pair.rejected
        assert pair.method == "self_consistency"
        assert pair.judgements
        assert [ref.path for ref in pair.media] == [pair.sample_id]
        assert len(pair.media[0].sha256) == 64


def test_the_table_has_before_after_and_all_controls(run: Path) -> None:
    table = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in table["rows"]] == [
        "before",
        "after",
        "random signs",
        "SFT on chosen",
        "cut as short",
    ]
    for row in table["rows"]:
        assert set(row["values"]) == set(table["columns"])
        assert 0 <= row["values"]["chair_s"] <= 1
    values = {row["name"]: row["values"] for row in table["rows"]}
    wanted = min(values["before"]["mentions"], values["after"]["mentions"])
    assert values["cut as short"]["mentions"] == pytest.approx(wanted, abs=0.05)


def test_the_same_command_again_makes_nothing_anew(run: Path) -> None:
    pairs = (run / "round-0" / "pairs.parquet").read_bytes()
    metrics = (run / "train" / "metrics.jsonl").read_bytes()
    table = (run / "evaluation.json").read_bytes()
    assert main(["run", str(RECIPE), *SMALL, "--output", str(run)]) == 0
    assert (run / "round-0" / "pairs.parquet").read_bytes() == pairs
    assert (run / "train" / "metrics.jsonl").read_bytes() == metrics
    assert (run / "evaluation.json").read_bytes() == table


def test_another_recipe_is_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(RECIPE), *SMALL, "--output", str(run), "--method.samples", "5"]) == 2
    error = capsys.readouterr().err
    assert "method.samples: 4 -> 5" in error
    assert error.count("\n") == 1


def test_a_table_is_never_made_with_settings_that_the_model_was_not_trained_with(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(RECIPE), *SMALL, "--output", str(run), "--train.learning_rate", "0.5"]
    table = (run / "evaluation.json").read_bytes()
    assert main(words) == 2
    assert "train.learning_rate: 8e-05 -> 0.5" in capsys.readouterr().err
    assert (run / "evaluation.json").read_bytes() == table


def test_photographs_that_gave_pairs_are_not_measured_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = ROOT / "data" / "images"
    labels = tmp_path / "labels.jsonl"
    (tmp_path / "bus.jpg").write_bytes((photographs / "bus.jpg").read_bytes())
    labels.write_text('{"image": "bus.jpg", "objects": ["bus"]}\n', encoding="utf-8")
    words = ["run", str(ROOT / "recipes" / "image" / "stic.yaml"), "--data.images", str(photographs)]
    words += ["--output", str(tmp_path / "run"), "--evaluate.labels", str(labels), "--train.lora.rank", "2"]
    assert main(words) == 2
    assert "evaluate.labels: 1 of its pictures also gave pairs" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_ends_with_the_same_pairs(
    run: Path, tmp_path: Path, how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "mmalign", "generate", str(RECIPE), *SMALL, "--output", str(tmp_path / "again")]
    # One request at a time, so that there is something left to do when the journal holds its first outcomes.
    words += ["--generate.concurrency", "1", "--generate.batch_size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    journal = tmp_path / "again" / "round-0" / "journal.sqlite"
    while not (journal.exists() and journal.stat().st_size > EMPTY_JOURNAL):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
            pytest.fail(f"the run ended before it could be interrupted: {process.communicate()[0]}")
    process.send_signal(how)
    out, _ = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again to go on" in out
        assert "Traceback" not in out
    assert not (tmp_path / "again" / "round-0" / "pairs.parquet").exists()
    capsys.readouterr()
    assert main(["generate", str(RECIPE), *SMALL, "--output", str(tmp_path / "again")]) == 0
    found = re.search(r"\((\d+) done before\)", capsys.readouterr().out)
    assert found
    assert int(found.group(1)) > 0
    unbroken = read_pairs(run / "round-0" / "pairs.parquet")
    again = read_pairs(tmp_path / "again" / "round-0" / "pairs.parquet")
    assert again == unbroken


def test_a_folder_of_good_and_bad_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    expected = write_hostile_folder(folder)
    run = tmp_path / "run"
    words = ["run", str(ROOT / "recipes" / "image" / "stic.yaml"), "--data.images", str(folder), "--output", str(run)]
    assert main([*words, "--generate.max_bad_share", "1"]) == 0
    bad = {}
    for line in (run / "quarantine.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        bad[row["id"]] = row["reason"]
    for name, reason in expected.items():
        if reason is None:
            assert name not in bad, bad.get(name)
        else:
            assert reason in bad[name]
    good = {name for name, reason in expected.items() if reason is None}
    pairs = read_pairs(run / "round-0" / "pairs.parquet")
    assert {pair.sample_id for pair in pairs} == good
    assert (run / "train" / "adapter").is_dir()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "generate", "train", "evaluate"):
        assert main([verb, str(RECIPE), "--output", str(tmp_path / "none"), "--dry-run"]) == 0
    assert not (tmp_path / "none").exists()
    out = capsys.readouterr().out
    assert "samples: 8" in out
    assert "Describe" in out


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_other_models_run_on_real_photographs(name: str, tmp_path: Path) -> None:
    built = tiny(name)
    # Random weights hardly ever end an answer by themselves, and stic drops answers that were cut off.
    built.model.generation_config.eos_token_id = list(range(0, built.model.config.get_text_config().vocab_size, 12))
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    photographs = ROOT / "data" / "images"
    words = ["run", str(ROOT / "recipes" / "image" / "stic.yaml"), "--output", str(tmp_path / "run")]
    words += ["--model.name", str(tmp_path / "model"), "--data.images", str(photographs), "--data.max_side", "64"]
    words += ["--method.temperature", "1.0", "--method.max_new_tokens", "64", "--train.max_length", "null"]
    words += ["--evaluate.scenes", "2", "--train.lora.rank", "2"]
    assert main(words) == 0
    assert not (tmp_path / "run" / "quarantine.jsonl").read_text(encoding="utf-8")
    pairs = read_pairs(tmp_path / "run" / "round-0" / "pairs.parquet")
    assert {pair.sample_id for pair in pairs} == {path.name for path in photographs.glob("*.jpg")}
    table = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["kind"] for row in table["rows"]] == ["before", "after", "control", "control", "control"]
