"""What an objective remembers from step to step.

All pairs of a step are laid side by side in the step's own order before the objective looks at them, so neither
micro-batches nor ranks change what it remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmalign.objectives import Objective, Remembering
from mmalign.train.schedule import MicroBatch


class Seen:
    """What the pairs `batch` of one optimizer step leave in `LossOutput.seen`, put together from micro-batches."""

    def __init__(self, batch: Sequence[int]) -> None:
        self._place = {index: place for place, index in enumerate(batch)}
        self._values: dict[str, Tensor] = {}

    def add(self, part: MicroBatch, seen: Mapping[str, Tensor]) -> None:
        """Take what the pairs of `part` that count left; tensors have the pairs as their first axis."""
        places = [self._place[index] for index in part.indices[: part.num_counted]]
        for name, values in seen.items():
            if name not in self._values:
                self._values[name] = values.new_zeros(len(self._place), *values.shape[1:])
            self._values[name][places] = values[: part.num_counted]

    def gathered(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The values of all pairs of the step; `total` sums a tensor over ranks, each of which fills its own rows."""
        return {name: total(self._values[name]) for name in sorted(self._values)}


class Memory:
    """The memory of an objective, on `device`; empty, and never anything else, for one that has none.

    `kept` are tensors by name, which a checkpoint saves.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        remembers = isinstance(objective, Remembering) and "memory" in objective.needs
        self._objective = objective if remembers and isinstance(objective, Remembering) else None
        self._device = device
        self.kept: dict[str, Tensor] = {}
        if self._objective is not None:
            self.load(self._objective.start_memory())

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Go on with what an earlier run kept."""
        self.kept = {name: values.to(self._device) for name, values in kept.items()}

    def after(self, seen: Seen, total: Callable[[Tensor], Tensor]) -> None:
        """Take in what a whole step left; all ranks call this and keep the same."""
        if self._objective is not None:
            self.load(self._objective.remember(self.kept, seen.gathered(total)))
