"""Peak memory of a training over what was there before it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

#: The allocator gives back what was freed, and does not keep it in pieces: the peak is that of what is in use.
FRESH = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
#: What a process is told of the benchmark's arguments.
TOLD = ("side", "width", "vocabulary", "pairs", "batch", "answer", "checkpointing")


def peaks(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """MiB of each trainer's first epoch."""
    found = {}
    for road in ("trl", "ours"):
        told = json.dumps({"name": name, "road": road, **{key: given[key] for key in TOLD}})
        command = [sys.executable, "-m", "benchmarks.train_step.memory", told]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            command, cwd=root, env={**os.environ, **FRESH}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        found[road] = float(done.stdout.splitlines()[-1])
    return found


def measured(name: str, road: str, root: Path, told: Mapping[str, Any]) -> float:
    """MiB of one trainer's first epoch over what its process held before."""
    from benchmarks.train_step.models import load, pairs
    from benchmarks.train_step.roads import Ours, Theirs, settings

    rows = pairs(name, root, told["pairs"], told["side"], told["answer"])
    config = settings(told["batch"], gradient_checkpointing=told["checkpointing"])
    make = partial(load, name, told["side"], told["width"], told["vocabulary"])
    trainer = (Ours if road == "ours" else Theirs)(make, rows, root, config, root / road).trainer()
    base = restart()
    trainer.train()
    return peak() - base


def restart() -> float:
    """Forget the peak so far; MiB that this process holds now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak() -> float:
    """MiB that this process held at most since `restart`."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        print(measured(asked.pop("name"), asked.pop("road"), Path(folder), asked))
