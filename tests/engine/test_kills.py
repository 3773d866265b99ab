"""More than a hundred times `kill -9`: in the end the same pairs and weights, and nothing unreadable at any time.

`MMALIGN_KILLS=10` takes ten times as many, `MMALIGN_KILL_SEED=7` other ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.kills import TINY, Job, Nursery, kill_again_and_again, pairs_and_quarantine, weights_and_curve

TIMES = int(os.environ.get("MMALIGN_KILLS", "1"))
SEED = int(os.environ.get("MMALIGN_KILL_SEED", "0"))

#: Kills that must meet a process at work, by what it is at.
KILLS = {"plain": 45, "two_pass": 30, "generate": 18, "train": 18, "run": 5}

STIC = str(TINY / "stic.yaml")
SMALL = ("--model.device", "cpu", "--train.threads", "1", "--evaluate.scenes", "0")
DRAWN = ("--data.scenes", "3")
TRAINING = (
    *("--train.batch_size", "1", "--train.epochs", "1", "--train.checkpoint_every_steps", "1"),
    *("--train.lora.rank", "2", "--train.lora.dropout", "0.2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def nursery(folder: Path) -> Iterator[Nursery]:
    """With a whole run in `folder/warm`."""
    run = ("run", STIC, *SMALL, *DRAWN, *TRAINING, "--output", str(folder / "warm"))
    with Nursery(folder / "words", [("command", run), ("scripted", (str(folder / "scripted"), "plain", "9"))]) as found:
        yield found


def kill(name: str, job: Job, folder: Path, **options: int) -> None:
    met = kill_again_and_again(job, folder, SEED, KILLS[name] * TIMES, **options)
    print(f"{name}: {met.total()} kills at {len(met)} places: {dict(met.most_common())}")


def test_there_are_more_than_a_hundred() -> None:
    assert sum(KILLS.values()) > 100


@pytest.mark.parametrize("name", ["plain", "two_pass"])
def test_pairs_of_a_scripted_model(name: str, nursery: Nursery, tmp_path: Path) -> None:
    kill(name, Job(nursery, "scripted", lambda run: [str(run), name, "120"], pairs_and_quarantine), tmp_path)


def test_pairs_of_the_embedded_model(nursery: Nursery, tmp_path: Path) -> None:
    words = ("generate", STIC, *SMALL, *DRAWN, "--output")
    job = Job(nursery, "without_page", lambda run: [*words, str(run)], pairs_and_quarantine)
    kill("generate", job, tmp_path, at_most=12)


def test_training(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "train.yaml"
    recipe.write_text("model: {name: tiny}\nobjective: {name: dpo}\n")
    data = {"pairs": "round-0/pairs.parquet", "media_root": "scenes"}
    flags = [word for key, name in data.items() for word in (f"--data.{key}", str(folder / "warm" / name))]
    words = ("train", str(recipe), *SMALL, *TRAINING, *flags, "--output")
    kill("train", Job(nursery, "without_page", lambda run: [*words, str(run)], weights_and_curve), tmp_path, at_most=12)


def test_a_whole_run(nursery: Nursery, tmp_path: Path) -> None:
    words = ("run", STIC, *SMALL, *DRAWN, *TRAINING, "--output")
    kill("run", Job(nursery, "command", lambda run: [*words, str(run)], weights_and_curve), tmp_path, at_most=12)
