"""Which pairs each optimizer step takes, and at what learning rate: pure functions of the step, so resuming needs none
of their state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmalign.train.config import Schedule


@dataclass(frozen=True, slots=True)
class Order:
    """The seeded order of pairs over all epochs, cut into optimizer steps; the last step of an epoch may be short."""

    num_pairs: int
    batch_size: int
    epochs: int
    seed: int

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
        return order[position * self.batch_size : (position + 1) * self.batch_size]


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
