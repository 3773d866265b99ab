"""Two processes with DeepSpeed ZeRO train to what one process trains to, and checkpoints go from one to the other."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
from accelerate import PartialState
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tests.train.ranks import POOLED, STOPPED, Run, begin, mixed
from tests.train.runs import assert_same_curve, curve, numbers
from tests.train.test_ranks import assert_same_files

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")

RUNS = {
    "lora": Run(config=mixed(schedule="cosine", warmup_ratio=0.5)),
    "all with the tower": Run(config=mixed(lora=None, freeze_vision=False), objective=POOLED),
    "reference with the adapter off": Run(config=mixed(precompute_reference=False)),
}


@pytest.fixture(scope="module", params=[2, 3], ids=["zero2", "zero3"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(f"zero{request.param}")
    STOPPED.killed(root / "1 to 2")
    spawn(_work, (root, request.param), nprocs=2)
    return root


def _work(rank: int, root: Path, stage: int) -> None:
    warnings.simplefilter("ignore")
    begin(rank, 2, root)
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    os.environ |= {
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29511",
    }
    PartialState(cpu=True)
    for name, run in RUNS.items():
        run.train(root / name)
    STOPPED.train(root / "1 to 2")
    STOPPED.killed(root / "2 to 1")
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_follow_one(name: str, two: Path, tmp_path: Path) -> None:
    RUNS[name].train(tmp_path)
    assert len(curve(tmp_path)) >= 4
    assert_same_curve(numbers(two / name), numbers(tmp_path), 1e-4)
    assert_same_files(two / name, tmp_path, 1e-4)


def test_a_killed_run_goes_on_with_and_without_deepspeed(two: Path, tmp_path: Path) -> None:
    STOPPED.train(tmp_path)
    STOPPED.train(two / "2 to 1")
    for name in ("1 to 2", "2 to 1"):
        assert_same_curve(numbers(two / name), numbers(tmp_path), 1e-4)
        assert_same_files(two / name, tmp_path, 1e-4)
