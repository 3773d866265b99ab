"""However a run with workers is stopped, no worker outlives it, and none holds what belongs to the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmalign.engine.rundir import RunDir
from mmalign.errors import Interrupted
from tests.engine.crews import Slow, Then, crew, sample_rows, with_crew, workers_of

ROOT = Path(__file__).resolve().parents[2]
#: Imported, so that workers know the module by its name.
RUN = "import sys; from tests.engine.crews import main; sys.exit(main(sys.argv[1:]))"
INTERRUPTED = "Interrupted: interrupted; what is done is kept, run the same command again to go on"


def start(path: Path, opener: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(path), opener, "100000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_workers(driver: subprocess.Popen[str], path: Path, opener: str) -> list[psutil.Process]:
    """The workers, once they are at work, or loading."""
    if opener == "hangs":
        assert driver.stderr is not None
        assert driver.stderr.readline() in ("worker 0: loading\n", "worker 1: loading\n")
    else:
        while not (path / "round-0" / "journal.sqlite").exists():
            assert driver.poll() is None
    while len(found := workers_of(driver.pid)) < 2:
        assert driver.poll() is None
    return found


@pytest.mark.parametrize(("opener", "number"), [("scripted", signal.SIGINT), ("hangs", signal.SIGTERM)])
def test_signals_end_all_in_one_line(tmp_path: Path, opener: str, number: signal.Signals) -> None:
    with start(tmp_path / "run", opener) as driver:
        workers = wait_for_workers(driver, tmp_path / "run", opener)
        os.killpg(driver.pid, number)  # as a terminal does
        _, errors = driver.communicate()
    assert driver.returncode == 1
    assert errors.splitlines()[-1:] == [INTERRUPTED]
    assert "Traceback" not in errors
    assert "died" not in errors
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("opener", ["scripted", "hangs"])
def test_a_killed_driver_leaves_no_workers_and_no_lock(tmp_path: Path, opener: str) -> None:
    with start(tmp_path / "run", opener) as driver:
        workers = wait_for_workers(driver, tmp_path / "run", opener)
        held = {Path(file.path).name for worker in workers for file in worker.open_files()}
        assert not held & {"run.lock", "journal.sqlite"}
        driver.kill()
        driver.wait()
        RunDir(tmp_path / "run").close()
        gone, alive = psutil.wait_procs(workers)
        assert alive == []
        assert len(gone) == 2
        assert driver.stderr is not None
        driver.stderr.read()


def test_an_interrupted_run_of_workers_is_gone_on_with(tmp_path: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        with_crew(tmp_path, sample_rows(60), Slow(), crew(2), progress=Then({20: interrupt}))
    assert workers_of(os.getpid()) == []
    assert with_crew(tmp_path, sample_rows(60), Slow(), crew(2)).resumed >= 20
