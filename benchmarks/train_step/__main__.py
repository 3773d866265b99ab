"""Whole trainings against TRL's DPOTrainer, and eight answers to a long prompt against rows of their own, in ratios.

    python -m benchmarks.train_step                                   # all of it, narrow models, less than 10 minutes
    python -m benchmarks.train_step --models llava --runs 3 --parts speed
    python -m benchmarks.train_step --device cuda --dtype bf16 --size 3b --parts gpu

Random weights of stock classes with the shares that tower, head and media have in real ones (`models`). Both trainers
take the same pictures, texts, order, adapters and learning rate; their losses are asserted equal to 1e-5. The runs of
what is compared alternate in one process, ratios are those of medians; memory is that of a process of its own for each.

- *cold* is all that an epoch costs when nothing was computed before: the reference's pass over the pairs and the steps.
- *warm* is an epoch with the caches that one before has left: reference log-probs, and features where they are kept.
- *start* is what a run does once, whatever it is long: trying out whether prompts can be shared.
- *bound* is the ratio of floating-point operations that are necessary (`bound`), *reached* the share of it. It
  counts matrix products only; other work is saved with them, so more than all of it can be reached.

On a machine that does other work, too, read the ratios of processor seconds. Numbers of steps are small: what `start`
takes would vanish in a real epoch and is printed apart. Eight answers are tried on the first model only. What is for a
GPU was written without one: it ran at small size on a CPU, never on a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.train_step.bound import Bounds
from benchmarks.train_step.memory import peaks
from benchmarks.train_step.models import MODELS, listed, load, pairs
from benchmarks.train_step.roads import Moment, Ours, Theirs, Took, assert_same, settings
from mmalign.objectives import find_objective

PARTS = ("speed", "memory", "lists", "gpu")
Told = dict[str, Any]


@dataclass(frozen=True)
class Ratios:
    """How many times as fast one is as the other, by the clock and by processor seconds."""

    clock: float
    processor: float

    @classmethod
    def of(cls, slow: Sequence[Moment], fast: Sequence[Moment]) -> Ratios:
        return cls(
            *(
                statistics.median(getattr(run, kind) for run in slow)
                / statistics.median(getattr(run, kind) for run in fast)
                for kind in ("clock", "processor")
            )
        )

    def told(self, bound: float) -> Told:
        """As it is written to a file."""
        return {"clock": round(self.clock, 2), "processor": round(self.processor, 2), "bound": round(bound, 2)}

    def __str__(self) -> str:
        return f"{self.clock:.2f} times as fast by the clock, {self.processor:.2f} by processor seconds"


def spread(runs: Sequence[Moment]) -> str:
    """Median, least and most seconds by the clock."""
    seconds = [run.clock for run in runs]
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"


def against(bound: float, ratios: Ratios) -> str:
    return f"bound {bound:.2f}, reached {ratios.processor / bound:.0%}"


def speed(name: str, given: argparse.Namespace, root: Path) -> Told:
    """Cold and warm epochs beside TRL's."""
    rows = pairs(name, root, given.pairs, given.side, given.answer)
    config = settings(given.batch, gradient_checkpointing=given.checkpointing)
    make = partial(load, name, given.side, given.width, given.vocabulary)
    ours, theirs = Ours(make, rows, root, config, root / "ours"), Theirs(make, rows, root, config, root / "trl")
    cold: list[Took] = []
    warm: list[Took] = []
    trl: list[Took] = []
    for number in range(given.runs + 1):
        for found, train in (
            (trl, theirs.train),
            (cold, partial(ours.train, cold=True)),
            (warm, partial(ours.train, cold=False)),
        ):
            took = train()
            if number:  # the first of each warms up
                found.append(took)
        if number:
            assert_same(cold[-1], trl[-1])
            assert_same(warm[-1], trl[-1])
    bounds = Bounds.of(make(), rows, root, config)
    steps = [run.steps for run in trl]
    first, later = Ratios.of(steps, [run.work for run in cold]), Ratios.of(steps, [run.work for run in warm])
    print(f"{name}, {given.pairs} pairs in steps of {given.batch}, prompt {bounds.prompt}, answers ~{given.answer}")
    print(f"  TRL   {spread(steps)}")
    print(f"  cold  {spread([run.work for run in cold])}: {first}; {against(bounds.cold, first)}")
    print(f"  warm  {spread([run.work for run in warm])}: {later}; {against(bounds.warm, later)}")
    print(
        f"  start {spread([run.start for run in cold])}; losses {', '.join(f'{loss:.5f}' for loss in cold[-1].losses)}"
    )
    return {"prompt": bounds.prompt, "cold": first.told(bounds.cold), "warm": later.told(bounds.warm)}


def lists(name: str, given: argparse.Namespace, root: Path) -> Told:
    """A list-wise step (LiPO) about eight answers to a long prompt: in a row that shares it, and in rows of their own.

    Features and reference are there; what is compared is the prompt in the language model.
    """
    four = pairs(name, root, 1, given.long_side, given.answer, completions=8)
    rows = listed(four)
    config = settings(4, gradient_checkpointing=given.checkpointing)
    make = partial(load, name, given.long_side, given.width, given.vocabulary)
    roads = {"shared": config, "plain": replace(config, shared_prefix="off")}
    found: dict[str, list[Took]] = {road: [] for road in roads}
    for number in range(given.runs + 1):
        for road, own in roads.items():
            epochs = 1 if number else 2  # the first of each warms up, and shows that both learn the same
            ours = Ours(make, rows, root, replace(own, epochs=epochs), root / road, find_objective("lipo")())
            found[road].append(ours.train(cold=not number))
        if not number:
            assert_same(found["shared"].pop(), found["plain"].pop())
    bounds = Bounds.of(make(), four, root, config)
    once, each = ([run.steps for run in found[road]] for road in roads)
    ratios = Ratios.of(each, once)
    print(
        f"{name}, 8 answers to prompts of {bounds.prompt}: plain {spread(each)}, shared {spread(once)}: {ratios}; "
        f"{against(bounds.rows, ratios)}"
    )
    return {"prompt": bounds.prompt, "eight answers": ratios.told(bounds.rows)}


def memory(name: str, given: argparse.Namespace) -> Told:
    """Peaks over what was there before training, each in a process of its own."""
    found = peaks(name, vars(given))
    share = found["ours"] / found["trl"]
    print(f"{name}, peak memory over the base: TRL {found['trl']:.0f} MiB, ours {found['ours']:.0f} MiB: {share:.2f}")
    return {"memory": round(share, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    given = parsed(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    if "gpu" in given.parts:
        from benchmarks.train_step.gpu import compare

        compare(given)
        return
    found: dict[str, Told] = {name: {} for name in given.models}
    for name, told in found.items():
        for part in given.parts:
            if part == "lists" and name != given.models[0]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                if part == "speed":
                    told |= {"speed": speed(name, given, Path(folder))}
                elif part == "lists":
                    told |= {"lists": lists(name, given, Path(folder))}
                else:
                    told |= memory(name, given)
    if given.json is not None:
        result = {"runs": given.runs, "models": found}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parsed(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["speed", "memory", "lists"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="pairs per step, in one forward")
    parser.add_argument("--side", type=int, default=24, help="a picture has side x side tokens")
    parser.add_argument("--long-side", type=int, default=45, help="the same for prompts of eight answers")
    parser.add_argument("--answer", type=int, default=80, help="about how many tokens an answer has")
    parser.add_argument("--width", type=int, default=320, help="of the narrow language models")
    parser.add_argument("--vocabulary", type=int, help="tokens of the narrow head; its share of the work by default")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="write the ratios to this file, too")
    parser.add_argument("--device", default="cpu", help="of the part gpu, as is what follows")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--size", choices=("narrow", "3b"), default="narrow")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device in this type")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
