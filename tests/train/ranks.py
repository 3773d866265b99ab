"""Runs about pictures, clips and text together, by one process or by two that talk over gloo on the CPU."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from mmalign.objectives import DPO, RRPO, Objective
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.rows import quick
from tests.train.test_mixed import MIXED, pairs_about
from tests.train.test_resume import Stopping

WORLD = 2
POOLED = DPO(sft_weight=0.1, nll_reduction="pooled")
#: A rank that waits longer for the other has lost it.
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: seven pairs of three kinds in steps of five and of two, so that no kind divides by two ranks."""

    config: TrainConfig
    model: str = "qwen3-vl"
    objective: Objective = POOLED

    def train(self, root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            rows = [
                replace(row, weight=0.5 + index, stage=index % 2) for index, row in enumerate(pairs_about(MIXED, patch))
            ]
            train_pairs(tiny(self.model), rows, self.objective, self.config, root, root / "run", quiet=True)


def mixed(**changes: object) -> TrainConfig:
    return quick(**{"batch_size": 5, "micro_batch_size": 1, "epochs": 2, "learning_rate": 1e-4, **changes})


RUNS = {
    "lora": Run(config=mixed()),
    "lora on the tower": Run(config=mixed(freeze_vision=False)),
    "full with the tower": Run(config=mixed(lora=None, freeze_vision=False), model="llava-onevision"),
    "checkpointed activations": Run(config=mixed(freeze_vision=False, gradient_checkpointing=True)),
    "reference at every step": Run(config=mixed(precompute_reference=False)),
    "stages": Run(config=mixed(stages="renew", sft_after_stages=True), objective=RRPO()),
}
#: Killed in its third step, two checkpoints in.
KILLED = Run(config=mixed(checkpoint_every_steps=1, lora=LoraConfig(), keep_checkpoints=1))
KILLED_AT = 8


def in_two_processes(root: Path) -> None:
    """Every run in a folder of its own in `root`, all by the same two processes."""
    spawn(_work, (root,), nprocs=WORLD)


def _work(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in names.items()})
    store = f"file://{root / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    for name, run in RUNS.items():
        run.train(root / name)
    with suppress(KeyboardInterrupt):
        replace(KILLED, objective=Stopping(calls=[], at=KILLED_AT, inner=KILLED.objective)).train(root / "killed")
    distributed.destroy_process_group()
