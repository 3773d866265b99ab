"""What several processes of a launch do, and what is refused of launch files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from mmalign import cli
from mmalign.engine import RunDir
from mmalign.errors import MMAlignError, StoreError, TrainError
from mmalign.train.distributed import ranks
from mmalign.train.distributed.launch import Launch
from mmalign.train.stages import train_stages
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import trainer

FILES = Path(__file__).parents[2] / "recipes" / "accelerate"


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_accelerate_takes_the_launch_files(name: str) -> None:
    path = FILES / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "no", "train.precision decides"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given.get("fsdp_config", {}).get("fsdp_cpu_ram_efficient_loading", False) is False
    assert given.get("deepspeed_config", {}).get("zero3_init_flag", False) is False
    assert f"--config_file recipes/accelerate/{name}.yaml" in path.read_text(encoding="utf-8")


def test_alone_there_is_nobody_to_wait_for() -> None:
    launch = Launch.begin(on_cpu=True)
    assert launch.is_first
    assert launch.by_first(lambda: "done") == "done"
    assert launch.agreed(lambda: True)
    assert not launch.agreed(lambda: False)
    launch.end()


def test_a_first_process_that_is_gone_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("mmalign.train.distributed.launch.distributed.broadcast", broken)
    with pytest.raises(MMAlignError, match="the first process of the launch is gone"):
        Launch(index=1, count=2).by_first(lambda: None)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "fsdp_cpu_ram_efficient_loading"),
        ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "zero3_init_flag"),
    ],
)
def test_weights_that_one_rank_would_read_are_refused(
    key: str, named: str, follower: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key, "true")
    with pytest.raises(MMAlignError, match=f"{named} is true"):
        Launch.begin(on_cpu=True)


def test_fsdp_without_accelerators_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    with pytest.raises(TrainError, match="asks for FSDP, but it needs several accelerators"):
        trainer(tmp_path, make_rows(tmp_path, 2), quick())


def test_stages_are_refused_where_adapters_cannot_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.objectives import DPO

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    rows = make_rows(tmp_path, 2)
    with pytest.raises(TrainError, match=r"train\.stages is renew.*FSDP2 or DeepSpeed cannot do; set it to mixed"):
        train_stages(tiny("qwen3-vl"), rows, DPO(), quick(stages="renew"), tmp_path, tmp_path / "run")


def test_followers_leave_other_verbs_to_the_first(
    follower: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert cli.main(["list"]) == 0
    assert cli.main(["run", "nothing.yaml", "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "")
    assert slept == []
    assert cli.main(["demo"]) == 2
    assert slept == [cli.SECONDS_TO_END], "a mistake that all processes make is told by the first"
    assert capsys.readouterr().err == "mmalign: demo: runs in one process; start it without `accelerate launch`\n"


def test_a_run_directory_is_held_once_for_a_launch(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as first:
        with pytest.raises(StoreError):
            RunDir(tmp_path / "run")
        with RunDir(tmp_path / "run", locked=False) as other:
            assert other.pairs_path() == first.pairs_path()
        with pytest.raises(StoreError):
            RunDir(tmp_path / "run")


def test_one_process_stays_on_the_accelerator_that_its_model_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    ranks._take(torch.device("cpu"))
    assert not taken
    ranks._take(torch.device("cuda:1"))
    assert taken == [torch.device("cuda:1")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks._take(torch.device("cuda:0"))
    assert len(taken) == 1, "a launch deals them"
