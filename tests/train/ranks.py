"""Runs about pictures, clips and text together, by one process or by several that talk over gloo on the CPU."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from torch import distributed
from torch.multiprocessing.spawn import spawn

from mmalign.errors import TrainError
from mmalign.objectives import DPO, RRPO, Objective
from mmalign.objectives.noisy import LCPO
from mmalign.objectives.reward import BradleyTerry
from mmalign.train.config import TrainConfig
from mmalign.train.distributed.launch import Launch
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.rows import quick
from tests.train.test_mixed import MIXED, pairs_about
from tests.train.test_resume import Stopping

POOLED = DPO(sft_weight=0.1, nll_reduction="pooled")
#: A rank that waits longer for the other has lost it.
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: seven pairs of three kinds in steps of five and of two, so that no kind divides by two ranks."""

    config: TrainConfig
    model: str = "qwen3-vl"
    objective: Objective = POOLED
    dtype: torch.dtype = torch.float32

    def train(self, root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            rows = [
                replace(row, weight=0.5 + index, stage=index % 2) for index, row in enumerate(pairs_about(MIXED, patch))
            ]
            loaded = tiny(self.model)
            loaded.model.to(self.dtype)
            train_pairs(loaded, rows, self.objective, self.config, root, root / "run", quiet=True)

    def killed(self, root: Path) -> None:
        """Train, but be killed in the third step."""
        # Two ranks call the objective three times each in the first step and twice in the second; one rank calls it
        # as often as there are pairs.
        calls = 8 if distributed.is_initialized() else 15
        stopping = Stopping(calls=[], at=calls, inner=self.objective)
        with suppress(KeyboardInterrupt):
            replace(self, objective=stopping).train(root)


def mixed(**changes: object) -> TrainConfig:
    return quick(**{"batch_size": 5, "micro_batch_size": 1, "epochs": 2, "learning_rate": 1e-4, **changes})


REPLICATED = {
    "lora": Run(config=mixed()),
    "lora on the tower": Run(config=mixed(freeze_vision=False)),
    "full with the tower": Run(config=mixed(lora=None, freeze_vision=False), model="llava-onevision"),
    "checkpointed activations": Run(config=mixed(freeze_vision=False, gradient_checkpointing=True)),
    "reference at every step": Run(config=mixed(precompute_reference=False)),
    "memory": Run(config=mixed(), objective=LCPO()),
    "head": Run(config=mixed(), objective=BradleyTerry()),
    "head on all": Run(config=mixed(lora=None), objective=BradleyTerry()),
    "stages": Run(config=mixed(stages="renew", sft_after_stages=True), objective=RRPO()),
}
SHARDED = {
    "lora on half": Run(config=mixed(precision="bf16", learning_rate=1e-5, schedule="cosine"), dtype=torch.bfloat16),
    "lora on the tower, checkpointed": Run(config=mixed(freeze_vision=False, gradient_checkpointing=True)),
    "all with the tower": Run(config=mixed(lora=None, freeze_vision=False), model="llava-onevision"),
    "all, tied, of a frozen tower": Run(config=mixed(lora=None), model="gemma3"),
    "reference with the adapter off": Run(config=mixed(precompute_reference=False)),
    "divergence": Run(config=mixed(), objective=RRPO()),
    "memory in parts": Run(config=mixed(), objective=LCPO()),
    "head in parts": Run(config=mixed(lora=None), objective=BradleyTerry()),
    "divergence of all": Run(config=mixed(lora=None), objective=RRPO()),
}
#: Killed in the third step of four, by as many processes as the first number says; the second number goes on.
STOPPED = Run(config=mixed(checkpoint_every_steps=1, keep_checkpoints=1))
TAKEN_OVER = [f"{kind} {way}" for kind in ("replicated", "sharded") for way in ("1 to 2", "2 to 1", "2 to 3")]


def in_processes(root: Path) -> None:
    """Every run in a folder of its own in `root`: by two processes, those that three go on with by three."""
    for kind in ("replicated", "sharded"):
        STOPPED.killed(root / f"{kind} 1 to 2")
    spawn(_two, (root,), nprocs=2)
    spawn(_three, (root,), nprocs=3)


def _two(rank: int, root: Path) -> None:
    begin(rank, 2, root)
    for kind, runs in (("replicated", REPLICATED), ("sharded", SHARDED)):
        _as(kind)
        for name, run in runs.items():
            run.train(root / name)
        STOPPED.train(root / f"{kind} 1 to 2")
        STOPPED.killed(root / f"{kind} 2 to 1")
        if rank == 0:
            shutil.copytree(root / f"{kind} 2 to 1", root / f"{kind} 2 to 3")
    _as("replicated")
    (root / f"launch-{rank}.json").write_text(json.dumps(_asked_of_first(rank)), encoding="utf-8")
    distributed.destroy_process_group()


def _asked_of_first(rank: int) -> list[object]:
    """What a process of a launch gets of the first one's work, of its answers, and of its failure."""
    launch = Launch.begin(on_cpu=True)
    found: list[object] = [launch.by_first(lambda: "done")]
    found += [launch.agreed(lambda: rank == 0), launch.agreed(lambda: rank > 0)]

    def fail() -> None:
        raise TrainError("of the first")

    try:
        launch.by_first(fail)
    except TrainError as error:
        return [*found, str(error)]
    except SystemExit as end:
        return [*found, end.code]
    return found


def _three(rank: int, root: Path) -> None:
    begin(rank, 3, root)
    for kind in ("replicated", "sharded"):
        _as(kind)
        STOPPED.train(root / f"{kind} 2 to 3")
    distributed.destroy_process_group()


def begin(rank: int, world: int, root: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in names.items()})
    store = f"file://{root / f'store-{world}'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)


def _as(kind: str) -> None:
    """Begin what `accelerate launch` would have begun: ranks with all weights each, or with a part (FSDP2)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    if kind == "sharded":
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        # accelerate shards on accelerators only, so it has to take the processes for some.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
