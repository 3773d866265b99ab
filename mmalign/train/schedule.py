"""Which pairs each optimizer step takes, and at what learning rate: pure functions of the step, so resuming needs none
of their state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmalign.errors import TrainError
from mmalign.objectives import Objective
from mmalign.train.config import Schedule, TrainConfig


@dataclass(frozen=True, slots=True)
class Order:
    """The seeded order of pairs over all epochs, cut into optimizer steps; the last step of an epoch may be short.

    `twins` names, for every pair, what it is one of two versions of, or None: no step has both, but where the pairs are
    too few for its size.
    """

    num_pairs: int
    batch_size: int
    epochs: int
    seed: int
    twins: Sequence[str | None] = ()

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_pairs / self.batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def batch(self, step: int) -> list[int]:
        """Indices of the pairs of optimizer step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        digest = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        order: list[int] = torch.randperm(self.num_pairs, generator=generator).tolist()
        if any(self.twins):
            order = _parted(order, self.twins, self.batch_size)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


def _parted(order: list[int], twins: Sequence[str | None], size: int) -> list[int]:
    """First one version of every pair, then the others; those whose twin is in the step between go to the end."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for index in order:
        name = twins[index]
        (second if name in seen else first).append(index)
        if name is not None:
            seen.add(name)
    between = {twins[index] for index in first[len(first) - len(first) % size :]} - {None}
    return first + sorted(second, key=lambda index: twins[index] in between)


def rank_share(batch: list[int], rank: int, world: int) -> tuple[list[int], int]:
    """This rank's pairs of a step and how many of them count.

    Every rank gets equally many, so that all run the same number of forwards; a rank that would have fewer takes the
    step's first pair again, at the end of its list, where it does not count.
    """
    mine = batch[rank::world]
    filled = mine + batch[:1] * (math.ceil(len(batch) / world) - len(mine))
    return filled, len(mine)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs of one forward; the first `num_counted` of them count."""

    indices: list[int]
    num_counted: int


def micro_batches(batch: list[int], kinds: Sequence[str], rank: int, world: int, size: int) -> list[MicroBatch]:
    """This rank's forwards of a step: at most `size` pairs each, all of one kind, `kinds[index]` being that of a pair.

    Every rank gets the same kinds in the same order, and as many forwards of each: models run other parts for clips
    than for pictures, and ranks that exchange gradients must run the same.
    """
    found = []
    for kind in sorted({kinds[index] for index in batch}):
        mine, num_mine = rank_share([index for index in batch if kinds[index] == kind], rank, world)
        for first in range(0, len(mine), size):
            part = mine[first : first + size]
            found.append(MicroBatch(part, min(len(part), max(0, num_mine - first))))
    return found


def micro_batch_size(objective: Objective, config: TrainConfig, kinds: Sequence[str], world: int) -> int:
    """Pairs per forward: all of a step where the objective compares them with each other, else as configured.

    Raises TrainError where they cannot share a forward: several ranks, or media of several kinds.
    """
    if "whole_step" not in objective.needs:
        return config.micro_batch_size
    told = f"objective {objective.name} compares all pairs of a step with each other"
    if world > 1:
        raise TrainError(f"{told}, which takes them to one process; start one instead of {world}")
    if len(found := sorted(set(kinds))) > 1:
        named = ", ".join(kind or "text" for kind in found)
        raise TrainError(f"{told}, but these pairs are about media of several kinds ({named}); train on one kind")
    return config.batch_size


def lr_factor(step: int, num_steps: int, warmup_ratio: float, schedule: Schedule) -> float:
    """Share of the highest learning rate at `step`, counted from 0.

    Rises linearly over ceil(warmup_ratio * num_steps) steps to the full rate of the one after them, then falls towards
    0, which the step after the last would have.
    """
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
