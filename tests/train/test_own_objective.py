"""An objective of the user's own that fails, or gives what is no loss per pair, ends in one line that says where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.objectives import LossInputs, LossOutput
from tests.train.rows import make_rows, quick
from tests.train.runs import trainer


@dataclass(frozen=True, kw_only=True)
class Own:
    """Whatever loss `give` makes of the chosen text's log-probs (B, T)."""

    name: ClassVar[str] = "own"
    needs: ClassVar[frozenset[str]] = frozenset(("chosen", "rejected"))
    give: Callable[[Tensor], Any]

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        return LossOutput(loss=self.give(inputs.chosen.token_logps), metrics={})


def test_an_error_names_objective_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"^objective own: KeyError: 'gold' \(test_own_objective.py:\d+\)$"):
        trainer(tmp_path, make_rows(tmp_path, 2), quick(), Own(give=lambda logps: {}["gold"])).train()


def test_an_error_inside_torch_names_the_line_that_called_it(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"^objective own: RuntimeError: [^\n]* \(test_own_objective.py:\d+\)$"):
        trainer(tmp_path, make_rows(tmp_path, 2), quick(), Own(give=lambda logps: logps @ torch.ones(1, 1))).train()


@pytest.mark.parametrize("give", [lambda logps: -logps.mean(), lambda logps: -logps, lambda logps: -logps.sum(-1)[:1]])
def test_a_loss_that_is_not_one_per_pair_is_refused(give: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    config = quick(batch_size=2, micro_batch_size=2)
    with pytest.raises(TrainError, match=r"objective own gave a loss of shape .* for 2 pairs; it must give one loss"):
        trainer(tmp_path, make_rows(tmp_path, 2), config, Own(give=give)).train()


def test_one_loss_per_pair_is_taken(tmp_path: Path) -> None:
    assert trainer(tmp_path, make_rows(tmp_path, 2), quick(), Own(give=lambda logps: -logps.sum(-1))).train().steps > 0
