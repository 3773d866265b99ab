"""More than a hundred times `kill -9`: in the end the same pairs and weights, and nothing unreadable at any time.

`MMALIGN_KILLS=10` takes ten times as many, `MMALIGN_KILL_SEED=7` other ones.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmalign.pairs import read_pairs, write_pairs
from tests.engine.kills import (
    DRAWN,
    FULL,
    SMALL,
    STIC,
    TRAINING,
    WHOLE,
    Job,
    Nursery,
    kill_again_and_again,
    pairs_and_quarantine,
    unreadable,
    weights_and_curve,
)

TIMES = int(os.environ.get("MMALIGN_KILLS", "1"))
SEED = int(os.environ.get("MMALIGN_KILL_SEED", "0"))

#: Kills that must meet a process at work, by what it is at.
KILLS = {"plain": 45, "two_pass": 30, "generate": 18, "train": 18, "run": 5}


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
    job = Job(nursery, "command", lambda run: [*WHOLE, "--output", str(run)], weights_and_curve)
    kill("run", job, tmp_path, at_most=12)


#: Where a run of stages with controls is killed, or (False) finds the disk full, in the order in which it comes there.
BROKEN_OFF = (
    ("os.rename caches/features/features-N.safetensors", True),
    ("open caches/features/.partial-N", False),  # of what can be computed again: the run goes on
    ("os.rename run/train/stage-N/result.json", True),
    ("os.rename run/train/.partial-adapter/adapter_config.json", True),
    ("os.rename run/controls/random_signs/stage-N/checkpoints/step-N", True),
    ("fsync run/controls/sft/.partial-adapter/adapter_model.safetensors", True),
    ("os.rename run/evaluation.json", True),
)


def test_stages_and_controls_with_caches(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    pairs = read_pairs(folder / "warm" / "round-0" / "pairs.parquet")[:2]
    write_pairs(tmp_path / "pairs.parquet", [replace(pair, stage=number) for number, pair in enumerate(pairs)])
    measuring = {"scenes": "1", "max_new_tokens": "2", "examples": "1"}
    words = (
        *("run", STIC, *SMALL, *TRAINING, "--train.stages", "renew"),
        *("--data.pairs", str(tmp_path / "pairs.parquet"), "--data.media_root", str(folder / "warm" / "scenes")),
        *(word for key, value in measuring.items() for word in (f"--evaluate.{key}", value)),
    )

    def caches(top: Path) -> list[str]:
        names = ("feature", "reference")
        return [word for name in names for word in (f"--train.{name}_cache", str(top / "caches" / f"{name}s"))]

    def kept(top: Path) -> dict[str, Any]:
        evaluation = json.loads((top / "run" / "evaluation.json").read_text(encoding="utf-8"))
        return {**weights_and_curve(top / "run"), "evaluation": evaluation}

    job = Job(nursery, "without_page", lambda top: [*words, *caches(top), "--output", str(top / "run")], kept)
    places = job.whole(tmp_path / "unbroken").places
    assert not (away := [place for place, _ in BROKEN_OFF if place not in places]), away
    top = tmp_path / "again"
    for place, is_kill in BROKEN_OFF:
        ended = job.start(top, moment={"place": place, "at": 1, "act": "kill" if is_kill else "ENOSPC"}).end()
        if is_kill:
            assert ended.is_killed, (place, ended.err)
        else:
            assert (ended.status, ended.err.count("Traceback")) == (2, 0), (place, ended.err)
            assert FULL in ended.err, place
        assert unreadable(top) == [], place
    job.whole(top)
    assert job.kept(top) == job.kept(tmp_path / "unbroken")
