"""Short runs of the trainer, for its tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mmalign.lm.load import Loaded
from mmalign.objectives import DPO, Objective
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.train.metrics import read_metrics
from mmalign.train.trainer import PreferenceTrainer
from tests.models import tiny


def trainer(
    root: Path,
    rows: Sequence[PairRow],
    config: TrainConfig,
    objective: Objective | None = None,
    *,
    loaded: Loaded | None = None,
    run: str = "run",
) -> PreferenceTrainer:
    loaded = loaded or tiny("qwen3-vl")
    return PreferenceTrainer(loaded, rows, objective or DPO(), config, root, root / run, quiet=True)


def curve(root: Path, run: str = "run") -> list[dict[str, float]]:
    return read_metrics(root / run / "metrics.jsonl")


def numbers(root: Path, run: str = "run") -> list[dict[str, float]]:
    """A run's curve without the accuracy, which rounding decides where policy and reference still agree."""
    return [{key: value for key, value in line.items() if key != "accuracy"} for line in curve(root, run)]


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=tolerance, rel=tolerance)
