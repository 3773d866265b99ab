"""Experiment trackers beside `metrics.jsonl`, as accelerate knows them: tensorboard, wandb, mlflow and others."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from mmalign.errors import TrainError
from mmalign.objectives import Objective
from mmalign.train.config import TrainConfig


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise TrainError, one line, for a tracker that accelerate does not know or that is not installed."""
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise TrainError(f"train.report_to: {name} is no tracker{hint} (known are {', '.join(known)})")
        if name not in installed:
            there = ", ".join(sorted(installed)) or "none"
            raise TrainError(
                f"train.report_to: the package of {name} is not installed; of the trackers there are {there}"
            )


def settings_of(objective: Objective, config: TrainConfig) -> dict[str, Any]:
    """What a tracker is told of a run: the objective and every setting that is one value."""
    plain = {name: value for name, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
    return {"objective": repr(objective), **plain}


@contextmanager
def tracked(accelerator: Accelerator, settings: dict[str, Any]) -> Iterator[None]:
    """A block whose numbers go to the trackers, which are told of its end however it comes."""
    accelerator.init_trackers("mmalign", settings)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            # Not `end_training`: that would also part the ranks, who have more to do.
            tracker.finish()
