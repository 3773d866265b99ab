"""What a run keeps beside the model's weights: the memory of its objective and the head of a reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives import LossInputs, LossOutput, Objective
from mmalign.train.memory import Memory, Seen
from mmalign.train.reward.heads import RewardHead, below
from mmalign.train.schedule import MicroBatch


class Beside:
    """Memory and `head` of a run, and how far it is: `progress` is the share of its steps that are done."""

    def __init__(self, objective: Objective, head: RewardHead | None, device: torch.device) -> None:
        self.head, self.progress = head, 0.0
        self._memory = Memory(objective, device)
        self._seen = Seen(())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; empty where there is neither."""
        found = {f"memory.{name}": value.cpu() for name, value in self._memory.kept.items()}
        head = {} if self.head is None else self.head.state()
        return found | {f"head.{name}": value for name, value in head.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave."""
        self._memory.load(below(state, "memory"))
        if self.head is not None:
            self.head.load(below(state, "head"))

    def begin(self, batch: Sequence[int]) -> None:
        """Before the micro-batches of a step over the pairs `batch`."""
        self._seen = Seen(batch)

    def told(self, inputs: LossInputs) -> LossInputs:
        """The inputs with memory and progress."""
        return replace(inputs, memory=self._memory.kept, progress=self.progress)

    def add(self, part: MicroBatch, output: LossOutput) -> None:
        """Take what a micro-batch of the step left."""
        self._seen.add(part, output.seen)

    def penalty(self) -> Tensor | float:
        """What the head itself adds to the loss of a step."""
        own = None if self.head is None else self.head.penalty()
        return 0.0 if own is None else own

    def step(self, rate: float, most: float, reduce: Callable[[Tensor, str], Tensor]) -> float:
        """Step the head at a learning rate and remember the step; the norm that the head's gradients had.

        `reduce` makes the "mean" or the "sum" of a tensor over all ranks, which all call this. The head's gradients are
        scaled down to the norm `most`.
        """
        norm = 0.0 if self.head is None else self.head.step(rate, most, lambda value: reduce(value, "mean"))
        self._memory.after(self._seen, lambda value: reduce(value, "sum"))
        return norm

    def save(self, folder: Path) -> Any:
        """Write the head into the folder of an adapter or a model."""
        if self.head is not None:
            self.head.save(folder)
