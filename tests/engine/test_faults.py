"""A full disk, a folder that cannot be written, two processes, wild clocks, another recipe: one line, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.kills import (
    DRAWN,
    FULL,
    SMALL,
    STIC,
    WHOLE,
    Job,
    Nursery,
    left_over,
    pairs_and_quarantine,
    unreadable,
    weights_and_curve,
)

NOBODY = 65534


def scripted(nursery: Nursery, num: int = 60) -> Job:
    return Job(nursery, "scripted", lambda run: [str(run), "plain", str(num)], pairs_and_quarantine)


def whole(nursery: Nursery) -> Job:
    """Pairs, training and page of the embedded model."""
    return Job(nursery, "command", lambda run: [*WHOLE, "--output", str(run)], weights_and_curve)


# A full disk ----------------------------------------------------------------------------------------------------------


def test_the_disk_is_full_at_any_change_of_a_scripted_run(nursery: Nursery, tmp_path: Path) -> None:
    job, rng = scripted(nursery), random.Random(0)
    places = job.whole(tmp_path / "unbroken").places
    wanted = job.kept(tmp_path / "unbroken")
    assert len(places) > 10
    for number, (place, times) in enumerate(sorted(places.items())):
        run = tmp_path / f"{number}"
        moment = {"place": place, "at": rng.randint(1, times), "act": "ENOSPC"}
        assert FULL in job.start(run, moment=moment).end().told, moment
        assert not run.exists() or unreadable(run) == left_over(run) == [], moment
        job.whole(run)
        assert job.kept(run) == wanted, moment


#: Changes of a whole run, in the order in which it comes to them.
PLACES = (
    "open run.lock",
    "open .partial-environment.json",
    "open scenes/.partial-scene-N.png",
    "fsync .partial-quarantine.jsonl",
    "fsync round-N/.partial-pairs.parquet",
    "os.mkdir train/checkpoints",
    "open train/metrics.jsonl",
    "open train/checkpoints/.partial-step-N/optimizer.pt",
    "fsync train/.partial-adapter/adapter_model.safetensors",
    "open train/.partial-result.json",
    "fsync .partial-report.html",
)


def test_the_disk_is_full_again_and_again_in_a_whole_run(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    job, run = whole(nursery), tmp_path / "run"
    for place in PLACES:
        line = job.start(run, moment={"place": place, "at": 1, "act": "ENOSPC"}).end().told
        assert "no space left on device" in line.lower(), place
        assert "what is done is kept" in line, place
        assert unreadable(run) == left_over(run) == [], place
    job.whole(run)
    assert job.kept(run) == job.kept(folder / "warm")


@pytest.mark.parametrize("survives", [True, False], ids=["error", "killed"])
def test_no_file_may_grow_beyond_a_size(survives: bool, nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    """Writes end in the middle: with an error, or with the end of the process. A little further each time."""
    job, run = whole(nursery), tmp_path / "run"
    for largest in (2_000, 15_000, 25_000, 60_000, 110_000, 250_000):
        ended = job.start(run, largest=largest, survives=survives).end()
        if survives:
            assert FULL in ended.told, largest
        else:
            assert ended.status == -signal.SIGXFSZ, largest
        assert unreadable(run) == [], largest
    job.whole(run)
    assert job.kept(run) == job.kept(folder / "warm")


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system of its own at `place`, where the system lets us; otherwise the test is skipped."""
    place.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", *options, place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    job, disk = whole(nursery), tmp_path / "disk"
    run = disk / "run"
    with mounted(disk, "-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        for kilobytes in (16, 48, 120, 300, 420):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
            assert FULL in job.start(run).end().told, kilobytes
            assert unreadable(run) == [], kilobytes
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        job.whole(run)
        assert job.kept(run) == job.kept(folder / "warm")


# Not to be written ----------------------------------------------------------------------------------------------------


def test_a_file_system_that_became_read_only(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    job, disk = whole(nursery), tmp_path / "disk"
    run = disk / "run"
    with mounted(disk, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        job.start(run, moment={"place": "os.mkdir train/checkpoints", "at": 1, "act": "kill"}).end()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "make the folder writable or name another output" in job.start(run).end().told
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        job.whole(run)
        assert job.kept(run) == job.kept(folder / "warm")


def test_a_folder_of_somebody_else(nursery: Nursery) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        job, run = scripted(nursery), Path(name) / "run"
        run.mkdir(mode=0o555)
        other = {} if run.owner() != "root" else {"user": NOBODY}  # who may write anywhere
        line = job.start(run, **other).end().told
        assert line == (
            f"mmalign: {run}: cannot be written (permission denied); make the folder writable or name another output"
        )
        run.chmod(0o755)
        job.whole(run)


def test_a_file_system_that_becomes_read_only_at_any_change(nursery: Nursery, tmp_path: Path) -> None:
    job = scripted(nursery)
    places = job.whole(tmp_path / "unbroken").places
    for number, place in enumerate(sorted(places)):
        run = tmp_path / f"{number}"
        line = job.start(run, moment={"place": place, "at": 1, "act": "EROFS"}).end().told
        assert "make the folder writable or name another output" in line, place
        job.whole(run)
        assert job.kept(run) == job.kept(tmp_path / "unbroken"), place


# Two processes --------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_the_first_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    job, run = scripted(nursery), tmp_path / "run"
    first = job.start(run)
    while "answer" not in first.reading():
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is not done before the others come
    other = Job(
        nursery, "command", lambda run: ["run", STIC, *SMALL, *DRAWN, "--output", str(run)], pairs_and_quarantine
    )
    for second in (job, other):
        line = second.start(run).end().told
        assert line.startswith(f"mmalign: {run}: in use by process {first.pid} on ")
    os.kill(first.pid, signal.SIGCONT)
    assert first.end().status == 0
    job.whole(tmp_path / "unbroken")
    assert job.kept(run) == job.kept(tmp_path / "unbroken")


# Clocks ---------------------------------------------------------------------------------------------------------------


def test_clocks_that_jump_both_ways(nursery: Nursery, tmp_path: Path) -> None:
    job = scripted(nursery)
    job.whole(tmp_path / "unbroken")
    for seed in range(3):
        run = tmp_path / f"{seed}"
        job.start(run, clock=seed, moment={"place": "commit journal", "at": 3 + seed, "act": "kill"}).end()
        ended = job.start(run, clock=100 + seed).end()
        assert (ended.status, ended.err) == (0, "")
        assert unreadable(run) == []
        assert job.kept(run) == job.kept(tmp_path / "unbroken"), seed


def test_a_whole_run_with_such_clocks(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    job, run = whole(nursery), tmp_path / "run"
    place = "fsync train/checkpoints/.partial-step-N/weights.safetensors"
    assert job.start(run, clock=0, moment={"place": place, "at": 1, "act": "kill"}).end().is_killed
    assert job.start(run, clock=1).end().status == 0
    assert unreadable(run) == []
    assert job.kept(run) == job.kept(folder / "warm")


# Another recipe -------------------------------------------------------------------------------------------------------


#: Where a run is killed that another recipe then meets.
MAKING, TRAINED = "fsync round-N/.partial-pairs.parquet", "os.rename train/checkpoints/step-N"


@pytest.fixture(scope="module")
def broken_off(nursery: Nursery, folder: Path) -> dict[str, Path]:
    """A run that was killed while it made pairs, and one in training."""
    runs = {place: folder / f"broken-off-{number}" for number, place in enumerate((MAKING, TRAINED))}
    for place, run in runs.items():
        # The second of the checkpoints: only with one of them has training begun.
        moment = {"place": place, "at": 1 + (place == TRAINED), "act": "kill"}
        assert whole(nursery).start(run, moment=moment).end().is_killed
    return runs


@pytest.mark.parametrize(
    ("place", "flags", "says"),
    [
        (MAKING, ("--seed", "1"), "(seed: 0 -> 1)"),
        (MAKING, ("--method.p_bad_prompt", "0.25"), "(method.p_bad_prompt: 0.5 -> 0.25)"),
        (MAKING, ("--model.name", "another"), '(model.name: "tiny" -> "another")'),
        (MAKING, ("--model.dtype", "bfloat16"), '(model.dtype: "auto" -> "bfloat16")'),
        (MAKING, ("--data.scenes", "5"), "(data.scenes: 3 -> 5)"),
        (MAKING, ("--seed", "3", "--data.max_side", "100"), "(data.max_side: 2048 -> 100; seed: 0 -> 3)"),
        (TRAINED, ("--train.learning_rate", "0.5"), "(train.learning_rate: 0.00012 -> 0.5)"),
        (TRAINED, ("--objective.beta", "0.3"), "(objective.beta: 0.2 -> 0.3)"),
    ],
)
def test_another_recipe_is_refused_with_what_changed(
    place: str, flags: tuple[str, ...], says: str, nursery: Nursery, broken_off: dict[str, Path]
) -> None:
    run = broken_off[place]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    words = [*WHOLE, "--output", str(run), *flags]
    line = nursery.start("command", words, run).end().told
    assert says in line
    assert "put the old values back" in line
    assert before == {path: path.read_bytes() for path in before}


def test_free_keys_may_change(nursery: Nursery, folder: Path, broken_off: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(broken_off[TRAINED], run)
    flags = ("--generate.batch_size", "3", "--generate.concurrency", "2", "--train.keep_checkpoints", "1")
    words = [*WHOLE, "--output", str(run), *flags, "--evaluate.examples", "1"]
    assert nursery.start("command", words, run).end().status == 0
    assert weights_and_curve(run) == weights_and_curve(folder / "warm")
