"""Cards say what the run says, and nothing that the run does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from mmalign.cards.private import hub_id, without_paths, without_paths_inside
from mmalign.cards.record import Record
from mmalign.cards.write import dataset_card, model_card
from mmalign.cli import main
from mmalign.errors import StoreError
from tests.cards.runs import SECRETS, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_the_dataset_card(run: Path) -> None:
    text = dataset_card(Record.read(run), "cc-by-4.0")
    about = DatasetCard(text).data
    assert about.license == "cc-by-4.0"
    assert about.task_categories == ["image-text-to-text"]
    assert about.size_categories == ["n<1K"]
    assert about.configs == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "round-*/pairs.parquet"}]}
    ]
    for line in (
        "| pairs | 2 |",
        "| samples that gave pairs | 1 |",
        "| about pictures, videos, text alone | 2, 0, 0 |",
        "| branches | bad_prompt 2 |",
        "| judges | pairwise 2 |",
        "| damage | crop 2 |",
        "| seed | 7 |",
        "| set aside (quarantine) | open 1 |",
        "arXiv 2405.19716",
        "`Qwen/Qwen3-VL-8B-Instruct`",
        "p_bad_prompt: 0.25",
        "torch 2.14.1",
    ):
        assert line in text, line
    assert not [secret for secret in SECRETS if secret in text]


def test_the_model_card_has_the_numbers_of_the_run(run: Path) -> None:
    text = model_card(Record.read(run), None)
    about = ModelCard(text).data
    assert about.base_model == "Qwen/Qwen3-VL-8B-Instruct"
    assert (about.library_name, about.pipeline_tag) == ("peft", "image-text-to-text")
    assert about.license is None, "no licence is made up"
    assert about.datasets is None
    for line in (
        "| before | 0.550 (0.500 to 0.600) | 0.900 (0.900 to 0.900) |",
        "| after | 0.300 (0.250 to 0.350) | 0.900 (0.900 to 0.900) |",
        "| control: random signs | 0.650 (0.600 to 0.700) | 0.900 (0.900 to 0.900) |",
        "Measured on 10 drawn pictures, seed 0, 1.",
        "| steps | 4 |",
        "beta: 0.2",
        "learning_rate: 1.0e-05",
    ):
        assert line in text, line
    assert "threads" not in text
    assert not [secret for secret in SECRETS if secret in text]


def test_a_model_that_lies_on_this_machine_is_no_base_that_others_can_find(tmp_path: Path) -> None:
    run = make_run(tmp_path, model="/home/jo/models/mine", adapter=False)
    text = model_card(Record.read(run), None)
    assert ModelCard(text).data.base_model is None
    assert ModelCard(text).data.library_name == "transformers"
    assert "| base model | `mine` |" in text
    assert not [secret for secret in SECRETS if secret in text]


def test_what_the_run_lacks_is_not_told(run: Path) -> None:
    for name in ("evaluation.json", "environment.json", "quarantine.jsonl", "train/result.json"):
        (run / name).unlink()
    record = Record.read(run)
    assert record.model_folder is None
    text = model_card(record, None)
    assert "## Results" not in text
    assert "Nothing was measured in this run." in text
    assert "## Versions" not in text
    assert "| set aside (quarantine) | none |" in dataset_card(record, None)


def test_pairs_that_were_given_are_not_said_to_be_made(run: Path) -> None:
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("name: stic", "name: null"))
    text = dataset_card(Record.read(run), None)
    assert "They were given to the run" in text
    assert "arXiv" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("/home/jo/a b/c.png", "c.png"),
        ("~/models/x", "x"),
        ("C:\\Users\\jo\\x", "x"),
        ("file:///home/jo/x", "x"),
        ("Qwen/Qwen3-VL", "Qwen/Qwen3-VL"),
        ("and/or", "and/or"),
        ("https://a.b/c/d", "https://a.b/c/d"),
        ("at /a/b/c.png.", "at c.png."),
        ({"url": "http://x", "y": ["/a/b"]}, {"y": ["b"]}),
        (3, 3),
    ],
)
def test_paths_become_names(content: object, expected: object) -> None:
    assert without_paths(content) == expected


def test_words_keep_what_is_no_path() -> None:
    for words in ("</MASK> 1/2 w/o", "/no", "http://a.b/c/d", "yes/no/maybe", "\\alpha\\beta", "3 / 4 / 5"):
        assert without_paths_inside(words) == words
    assert without_paths_inside(["in /home/jo/x.txt, D:\\a\\b"]) == ["in x.txt, b"]


def test_only_repositories_are_names_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_id("a/b") == "a/b"
    assert [hub_id(name) for name in ("tiny", "./a/b", "/a/b", "a/b/c", "../b")] == [None] * 5
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("a/b") is None, "a folder of that name is what was loaded"


def test_the_verb_writes_both_cards(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(run), "--dry-run"]) == 0
    assert not (run / "cards").exists()
    assert main(["card", str(run), "--license", "mit"]) == 0
    for kind in ("dataset", "model"):
        assert "license: mit" in (run / "cards" / kind / "README.md").read_text()
    assert "licence" not in capsys.readouterr().out
    assert main(["card", str(run), "--output", str(run.parent / "there")]) == 0
    assert "name no licence" in capsys.readouterr().out


def test_no_run_and_an_empty_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a run directory"):
        Record.read(tmp_path)
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    (tmp_path / "environment.json").write_text(json.dumps({"packages": "broken"}))
    assert main(["card", str(tmp_path)]) == 2
