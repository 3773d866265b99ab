"""Several processes train to what one trains to, each with all weights (DDP) or a part of them (FSDP2): mixed media,
batches that do not divide, and runs taken over by other numbers of processes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.ranks import REPLICATED, SHARDED, STOPPED, TAKEN_OVER, in_processes
from tests.train.runs import assert_same_curve, curve, numbers


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    in_processes(root)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are interrupted in, by one process in one go."""
    root = tmp_path_factory.mktemp("alone")
    STOPPED.train(root)
    return root


@pytest.mark.parametrize("name", [*REPLICATED, *SHARDED])
def test_two_processes_follow_one(name: str, several: Path, tmp_path: Path) -> None:
    (REPLICATED | SHARDED)[name].train(tmp_path)
    assert len(curve(tmp_path)) >= 4
    assert_same_curve(numbers(several / name), numbers(tmp_path), 1e-4)
    assert_same_files(several / name, tmp_path, 1e-4)


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_a_killed_run_goes_on_with_other_processes(name: str, several: Path, alone: Path) -> None:
    if name.endswith("to 1"):
        (checkpoint,) = (several / name / "run" / "checkpoints").glob("step-*")
        assert checkpoint.name == "step-00000002"
        STOPPED.train(several / name)
    assert_same_curve(numbers(several / name), numbers(alone), 1e-4)
    assert_same_files(several / name, alone, 1e-4)


def test_the_first_process_works_and_answers_for_all(several: Path) -> None:
    found = [json.loads((several / f"launch-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert found == [["done", True, False, "of the first"], [None, True, False, 2]]


def assert_same_files(root: Path, other: Path, tolerance: float) -> None:
    """The same weights in the same files, under the same names."""
    paths = sorted(
        path.relative_to(other) for path in other.glob("run/*/*.safetensors") if "reference" not in str(path)
    )
    assert paths
    for path in paths:
        found, expected = load_file(root / path), load_file(other / path)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance)
