"""What a worker's link to the driver stands: strange deaths, output that nobody reads, folders that change."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mmalign.engine import processes
from mmalign.engine.feed import Job
from mmalign.engine.link import Lost
from mmalign.engine.outpost import Orders, facts
from mmalign.engine.processes import Processes
from mmalign.engine.rays import RayCluster
from mmalign.engine.task import Task
from mmalign.errors import MMAlignError, ModelError, StoreError
from mmalign.lm.protocol import LM
from mmalign.media.read import MediaLimits
from tests.engine import crews
from tests.engine.cases import Plain, sample_rows
from tests.engine.crews import Hanging, Slow, crew, scripted, with_crew


def leaves_a_child(number: int) -> LM:
    """A program that it started holds the worker's output open when the worker is dead."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(os.environ["LEFT"]).write_text(str(child.pid))
    return crews.dies(number)


def test_a_program_that_outlives_its_worker_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr("mmalign.engine.remote.NUM_STARTS", 1)
    monkeypatch.setenv("LEFT", str(tmp_path / "pid"))
    try:
        with pytest.raises(ModelError, match="workers died 1 times while they were started"):
            with_crew(tmp_path / "run", sample_rows(5), Slow(), crew(1, leaves_a_child))
    finally:
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        child.kill()


def talks(number: int) -> LM:
    print("\n".join(map(str, range(50_000))), flush=True)  # more than a pipe holds
    return crews.scripted(number)


def test_what_workers_print_may_be_read_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        def write(self, text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise AssertionError

    path = [*sys.path, tmp_path]  # not text, as some test set-ups leave it there
    monkeypatch.setattr(processes, "sys", SimpleNamespace(stderr=Deaf(), executable=sys.executable, path=path))
    assert with_crew(tmp_path, sample_rows(5), Slow(), crew(1, talks)).num_samples == 5


def test_what_workers_say_takes_bounded_memory(capsys: pytest.CaptureFixture[str]) -> None:
    log, told = processes._Log(), ["x" * 200_000, *(f"line {number}" for number in range(25_000))]
    first, second = processes._Said(), processes._Said()
    assert all(log._is_new(text, first) for text in told)
    for said in (log._told, first):
        assert 0 < len(said.counts) <= processes._MAX_LINES
    assert [log._is_new(told[-1], second) for _ in range(2)] == [False, True]  # the first had said it once
    log.relay(7, io.BytesIO("\n".join(told).encode()))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) == processes._MAX_LINE + len("worker 7: ")
    assert "".join(line.removeprefix("worker 7: ") for line in lines[:4]) == told[0]
    assert lines[-1] == "worker 7: line 24999"


def test_a_file_that_leaves_the_data_folder_does_not_refuse_workers(tmp_path: Path) -> None:
    task = Task(Plain(), 0, 0, tmp_path, MediaLimits())
    task.look_for(task.landmarks())
    for name in "abc":
        (tmp_path / name).touch()
    landmarks = task.landmarks()
    assert sorted(landmarks) == ["a", "b", "c"]
    (tmp_path / "a").unlink()
    task.look_for(landmarks)
    for name in "bc":
        (tmp_path / name).unlink()
    with pytest.raises(StoreError, match="does not see this data folder, or not what is in it"):
        task.look_for(landmarks)


def test_a_package_that_goes_by_another_name_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    versions = facts(Task(Plain(), 0, 0, tmp_path, MediaLimits()))["versions"]
    assert (versions["pillow"], versions["torch"]) == (None, "1")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorUnavailableError(RayError):
    pass


class Calls:
    """An actor's method, as Ray has it."""

    def __init__(self, call: Any) -> None:
        self.remote = call


def link_to(stay: Any, error: Exception) -> Any:
    """A link to an actor that is made up: its samples end with this error."""

    async def work(*_: Any) -> Any:
        raise error

    cluster = RayCluster(None, cpus=1, gpus=None, wants_gpu=False)
    known = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, ActorUnavailableError=ActorUnavailableError)
    cluster._ray, cluster._needs = SimpleNamespace(exceptions=known), ""
    cluster._actor = SimpleNamespace(remote=lambda: SimpleNamespace(work=Calls(work), stay=Calls(stay)))
    return cluster.link(0)


@pytest.mark.parametrize(
    ("error", "by_machine"),
    [
        (RayError("The actor died because its node has\n died."), True),
        (ActorUnavailableError("socket closed"), True),
        (RayError("The actor is dead because its worker process has died."), False),
    ],
)
async def test_an_actor_out_of_reach_is_given_up_though_it_stays(error: Exception, by_machine: bool) -> None:
    link = link_to(lambda: asyncio.Event().wait(), error)
    losing = asyncio.create_task(link.lost())
    await asyncio.sleep(0)
    assert not losing.done()
    with pytest.raises(Lost) as caught:
        await link.work("pairs", None)
    assert caught.value.by_machine is by_machine
    assert await losing is caught.value


async def test_an_actor_of_another_mmalign_is_told() -> None:
    async def stay() -> None:
        raise RayTaskError("Traceback\nAttributeError: 'Worker' object has no attribute 'stay'")

    with pytest.raises(MMAlignError, match=r"worker 0: AttributeError: .*; is mmalign installed alike on all nodes"):
        await link_to(stay, RayError()).lost()


async def test_a_worker_that_cannot_be_killed_is_lost_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Processes()
    await site.open(1, 1)
    link = site.link(0)
    await link.begin(Orders.of(Task(Hanging(hang="sample-0"), 0, 0, tmp_path, MediaLimits()), scripted))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda process: None)  # as where it is stuck in the system's own code
        working = asyncio.create_task(link.work("pairs", Job(sample_rows(1)[0])))
        await asyncio.sleep(0)
        how = Lost("it hung")
        link.give_up(how)
        with pytest.raises(Lost) as caught:
            await working
        assert caught.value is how
        assert await link.lost() is how
    await link.end()
