"""Steps beside TRL's on a GPU: Qwen2.5-VL of the 3B class with random weights, about pictures and about clips.

Written where there was no GPU: it never ran on one, and the first who has one should read its numbers with doubt. TRL
takes no clips, so those are trained on with a prompt for every answer instead, by our own trainer.

    python -m benchmarks.train_step --device cuda --dtype bf16 --size 3b --parts gpu

Printed for each road: steps and tokens (of TRL's rows) per second, peak memory with the model, and the share of the
device's `--peak` TFLOP/s that the necessary operations come to (model FLOPs utilisation: what a road computes more
than once does not count).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.train_step.bound import Bounds
from benchmarks.train_step.memory import peak, restart
from benchmarks.train_step.models import clips, load, pairs
from benchmarks.train_step.roads import Ours, Theirs, Took, settings

#: Frames of a clip.
FRAMES = 32


def compare(given: argparse.Namespace) -> None:
    """Print both media's numbers."""
    name = given.models[0] if given.size == "narrow" else given.size
    config = settings(
        given.batch,
        precision=given.dtype,
        gradient_checkpointing=given.checkpointing,
        micro_batch_size=given.batch,
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    for media in ("pictures", "clips"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if media == "pictures":
                rows = pairs(name, root, given.pairs, given.side, given.answer)
            else:
                rows = clips(name, root, given.pairs, given.side // 2, given.answer, FRAMES)
            make = partial(load, name, given.side, given.width, given.vocabulary, dtype, given.device)
            ours = Ours(make, rows, root, config, root / "ours")
            roads: dict[str, Callable[[], Took]] = {
                "cold": partial(ours.train, cold=True),
                "warm": partial(ours.train, cold=False),
            }
            if media == "pictures":
                roads = {"TRL": Theirs(make, rows, root, config, root / "trl").train, **roads}
            else:
                roads = {
                    "plain": partial(
                        Ours(make, rows, root, replace(config, shared_prefix="off"), root / "plain").train, cold=True
                    ),
                    **roads,
                }
            bounds = Bounds.of(make(), rows, root, config)
            print(f"{name}, {media}, prompt {bounds.prompt}, {given.pairs} pairs in steps of {given.batch}")
            for road, train in roads.items():
                show(road, train, bounds, given)


def show(road: str, train: Callable[[], Took], bounds: Bounds, given: argparse.Namespace) -> None:
    """Train once to warm up, then measure."""
    train()
    restart()
    runs = [train() for _ in range(given.runs)]
    seconds = sorted(run.work.clock for run in runs)
    median = seconds[len(seconds) // 2]
    steps = len(runs[0].losses)
    flops = bounds.flops[road == "warm"]
    print(
        f"  {road:5} {steps / median:.3f} steps/s, {bounds.tokens / median:.0f} tokens/s, "
        f"{peak():.0f} MiB at most, MFU {flops / median / (given.peak * 1e12):.1%}"
    )
