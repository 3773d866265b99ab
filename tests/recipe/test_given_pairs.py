"""Pairs that are there already take the place of a method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.errors import RecipeError
from mmalign.pairs import read_pairs
from mmalign.recipe.load import load_recipe

RECIPE = """
objective: {name: lipo}
data: {pairs: PAIRS}
model: {name: tiny}
train: {batch_size: 4, micro_batch_size: 2, learning_rate: 1.0e-3, epochs: 4, lora: {rank: 2}}
output: RUN
"""
THINGS = ("boat", "fish", "crab", "tree")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = []
    for number in range(6):
        right, wrong = THINGS[number % 4], THINGS[(number + 1) % 4]
        turn = {"role": "user", "content": [{"type": "text", "text": f"Name thing {number}."}]}
        answers = [{"text": text} for text in (f"A {right}.", f"There is a {right}.", f"A {wrong}.")]
        rows.append(
            {
                "id": f"p{number}",
                "sample_id": f"s{number}",
                "method": "mine",
                "context": [turn],
                "chosen": f"A {right}.",
                "rejected": f"A {wrong}.",
                "values": {"scores": [1.0, 0.5, 0.0]},
                "sides": {"answers": answers},
            }
        )
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, pairs: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    text = RECIPE.replace("PAIRS", str(pairs)).replace("RUN", str(tmp_path / "run"))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", ["run", "train"])
def test_lists_of_answers_are_trained_on(verb: str, recipe: Path, pairs: Path, tmp_path: Path) -> None:
    assert main([verb, str(recipe)]) == 0
    run = tmp_path / "run"
    assert read_pairs(run / "round-0" / "pairs.parquet") == read_pairs(pairs)
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 8
    assert lines[0]["margin"] == 0
    assert lines[-1]["margin"] > 0.05
    assert (run / "report.html").is_file()
    assert main([verb, str(run / "recipe.yaml")]) == 0, "what is recorded is a recipe"


def test_a_dry_run_shows_the_answers_of_the_file(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--dry-run", "--data.limit", "4"]) == 0
    told = capsys.readouterr().out
    assert "LoRA of rank 2 on 4 pairs, 4 steps of 4" in told
    assert "answers, 6 tokens: There is a boat." in told
    assert not (tmp_path / "run").exists()


def test_a_pair_that_lacks_something_is_named_before_training(
    recipe: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = pairs.read_text("utf-8").splitlines()
    lacking = json.loads(lines[3])
    del lacking["values"]
    pairs.write_text("\n".join([*lines[:3], json.dumps(lacking), *lines[4:]]), encoding="utf-8")
    assert main(["train", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "p3" in line
    assert "scores" in line


def test_changed_pairs_are_not_mixed_with_an_earlier_training(
    recipe: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe)]) == 0
    pairs.write_text("\n".join(pairs.read_text("utf-8").splitlines()[:5]), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was begun with other pairs" in line


def test_a_refused_training_changes_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe)]) == 0
    run = tmp_path / "run"
    before = (run / "recipe.yaml").read_bytes(), (run / "round-0" / "pairs.parquet").read_bytes()
    capsys.readouterr()
    for verb in ("train", "evaluate", "run"):
        assert main([verb, str(recipe), "--train.learning_rate", "0.5"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "train.learning_rate: 0.001 -> 0.5" in line
    assert ((run / "recipe.yaml").read_bytes(), (run / "round-0" / "pairs.parquet").read_bytes()) == before
    assert main(["merge", str(run)]) == 0
    assert main(["generate", str(recipe), "--train.learning_rate", "0.5"]) == 0, "which trains nothing"


def test_media_start_from_the_folder_named(recipe: Path, pairs: Path, tmp_path: Path) -> None:
    from mmalign.pipeline import root_of

    assert root_of(load_recipe(recipe)) == pairs.parent
    elsewhere = tmp_path / "media"
    assert root_of(load_recipe(recipe, ["--data.media_root", str(elsewhere)])) == elsewhere


def test_a_method_beside_pairs_is_refused(recipe: Path, pairs: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.pairs: the pairs are there already; take out the method"):
        load_recipe(recipe, ["--method.name", "stic"])
    recipe.write_text(recipe.read_text("utf-8") + "method: {name: stic}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"data\.pairs: the pairs are there already"):
        load_recipe(recipe)
    made = load_recipe(recipe, ["--data.pairs", str(pairs)])
    assert made.resolved["method"] == {"name": "given"}, "a flag takes the place of what the file names"


def test_without_pairs_an_objective_of_lists_is_refused(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective lipo needs .* side:answers"):
        load_recipe(recipe, ["--data.scenes", "3", "--method.name", "stic"])


@pytest.mark.parametrize("key", ["pairs", "samples", "images", "media_root"])
@pytest.mark.parametrize("verb", ["train", "generate"])
def test_a_path_mistyped_does_not_begin_a_run(
    verb: str, key: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = [] if key in ("pairs", "media_root") else ["--method.name", "stic", "--objective.name", "dpo"]
    nowhere = tmp_path / "nowhere"
    assert main([verb, str(recipe), f"--data.{key}", str(nowhere), *method]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data.{key}: {nowhere}: no such file or folder" in line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_pairs_that_are_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--dry-run", "--data.pairs", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: no such pair file" in capsys.readouterr().err


def test_a_file_without_pairs(recipe: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs.write_text("", encoding="utf-8")
    assert main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err == f"mmalign: {pairs}: holds no pairs, so there is nothing to train on\n"


def test_pairs_in_a_file_of_another_kind(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--data.pairs", str(recipe)]) == 2
    assert "JSON lines end in .jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "models", "told"),
    [
        ("lipo", "{teacher: tiny}", "train.models.teacher: objective lipo does not read it; it reads no other model"),
        ("dckd", "{techer: tiny}", "train.models.techer: objective dckd does not read it; it reads teacher"),
        ("sail", "{rewards: tiny}", "objective sail does not read it; it reads reward, reward_reference"),
    ],
)
def test_a_model_that_is_not_read_is_refused(objective: str, models: str, told: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe, ["--objective.name", objective, "--train.models", models])


def test_a_lack_of_models_names_the_key(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--objective.name", "dckd"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("`train.models` names other models")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vision_once", "yes", "train.vision_once: expected one of ['auto', 'off']. Got value: yes"),
        ("feature_memory_gb", "much", "train.feature_memory_gb: expected a number. Got value: much"),
        ("num_stages", "2.5", "train.num_stages: expected a whole number. Got value: 2.5"),
        ("report_to", "tensorboard", "train.report_to: expected a list. Got value: tensorboard"),
        ("models", "tiny", "train.models: expected a mapping. Got value: tiny"),
    ],
)
def test_a_wrong_kind_of_value_is_told_in_plain_words(key: str, value: str, told: str, recipe: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, [f"--train.{key}", value])
    assert told in str(error.value)
