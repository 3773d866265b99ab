"""Two processes train to what one trains to: mixed media, batches that do not divide, and a run taken over by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.ranks import KILLED, RUNS, in_two_processes
from tests.train.runs import assert_same_curve, curve, numbers


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    in_two_processes(root)
    return root


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_follow_one(name: str, two: Path, tmp_path: Path) -> None:
    RUNS[name].train(tmp_path)
    assert len(curve(tmp_path)) >= 4
    assert_same_curve(numbers(two / name), numbers(tmp_path), 1e-4)


def test_one_process_goes_on_where_two_were_killed(two: Path, tmp_path: Path) -> None:
    killed = two / "killed"
    (checkpoint,) = (killed / "run" / "checkpoints").glob("step-*")
    assert checkpoint.name == "step-00000002"
    before = curve(killed)
    KILLED.train(tmp_path)
    KILLED.train(killed)
    assert curve(killed)[: len(before)] == before
    assert_same_curve(numbers(killed), numbers(tmp_path), 1e-4)
