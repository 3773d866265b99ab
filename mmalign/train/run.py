"""What all parts of one training run share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign.lm.load import Loaded
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.train.beside import Beside
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import PairBatch
from mmalign.train.distributed.ranks import Ranks
from mmalign.train.failures import memory_named
from mmalign.train.forward import Forward
from mmalign.train.progress import ProgressLine


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's pairs, model and settings.

    `model` is `loaded.model` with the weights to be trained, before it is wrapped for several ranks; `kinds` are those
    of the rows' media (`modality`), `sides` the answers that the objective reads. `pass_key` and `processor_key` name
    what the reference's numbers and the encoded contexts depend on.
    """

    loaded: Loaded
    model: Any
    rows: list[PairRow]
    kinds: list[str]
    sides: tuple[str, ...]
    objective: Objective
    config: TrainConfig
    output: Path
    ranks: Ranks
    forward: Forward
    beside: Beside
    pass_key: str
    processor_key: str
    is_quiet: bool

    def memory_named(
        self, doing: str, indices: Sequence[int], batch: PairBatch | None = None, *, trains: bool = True
    ) -> AbstractContextManager[None]:
        """A block in which memory that runs out is told with the pairs `indices` and what to change.

        `trains`: what the objective sees is computed in it.
        """
        rows, whole = [self.rows[index] for index in indices], trains and "whole_step" in self.objective.needs
        return memory_named(doing, rows, self.config, self.loaded.renderer, batch, is_whole_step=whole)

    def batch_named(self, doing: str, batch: PairBatch) -> AbstractContextManager[None]:
        """The same for the pairs of a batch before training."""
        return self.memory_named(doing, [self._places[pair] for pair in batch.ids], batch, trains=False)

    def line(self, what: str, total: int, start: int = 0, unit: str = "pairs") -> ProgressLine:
        """A progress line of this run."""
        return ProgressLine(what, total, start, unit=unit, visible=not self.is_quiet)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {row.id: place for place, row in enumerate(self.rows)}
