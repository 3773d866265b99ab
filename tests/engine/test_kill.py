"""Real processes, really killed: in the end the same pairs, none lost, none twice, nothing unreadable."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from mmalign.engine import RunDir
from mmalign.engine.journal import Journal
from mmalign.errors import StoreError
from mmalign.pairs import read_pairs
from tests.engine.cases import METHODS, make, pair_bytes, sample_rows

ROOT = Path(__file__).resolve().parents[2]
NUM = 700


def start(path: Path, name: str, *largest: int, num: int = NUM) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engine.cases", str(path), name, str(num), *map(str, largest)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def num_journalled(path: Path) -> int:
    """Reads the journal as the next start will: after rolling back what was cut off."""
    with closing(sqlite3.connect(path / "round-0" / "journal.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'outcome'").fetchone() == (0,):
            return 0
        (num,) = database.execute("SELECT count(*) FROM outcome").fetchone()
    return int(num)


def kill_after(process: subprocess.Popen[str], num_answers: int, more_s: float) -> bool:
    """Kill a run once it has had so many answers; False when it ended before."""
    assert process.stdout is not None
    for _ in range(num_answers):
        if not process.stdout.readline():
            return False
    time.sleep(more_s)  # Anywhere between two answers; nothing is asserted about time.
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["plain", "two_pass"])
def test_kill_at_random_moments(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    seen = [0]
    for _ in range(12):
        with start(tmp_path / "run", name) as process:
            if not kill_after(process, rng.randint(0, 400), rng.uniform(0, 0.01)):
                break
        if (tmp_path / "run" / "round-0" / "journal.sqlite").exists():
            seen.append(num_journalled(tmp_path / "run"))
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the kills must have come while samples were being finished"
    with start(tmp_path / "run", name) as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    make(tmp_path / "unbroken", sample_rows(NUM), METHODS[name]())
    assert pair_bytes(tmp_path / "run") == pair_bytes(tmp_path / "unbroken")
    assert {entry.name for entry in (tmp_path / "run" / "round-0").iterdir() if entry.name.startswith(".")} == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_one_line_with_the_journal_intact(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path / "run", "plain", num=20_000) as process:
        assert process.stdout is not None
        for _ in range(1000):
            process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors == "Interrupted: interrupted; what is done is kept, run the same command again to go on\n"
    assert 0 < num_journalled(tmp_path / "run") < 20_000
    assert not (tmp_path / "run" / "round-0" / "pairs.parquet").exists()


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    make(tmp_path / "unbroken", sample_rows(NUM))
    # The largest file the process may write: too small for the journal's tables, for its rows.
    for largest in (10_000, 100_000, 300_000):
        with start(tmp_path / "run", "plain", largest) as process:
            assert process.stderr is not None
            lines = process.stderr.read().splitlines()
            assert process.wait() == 1
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"StoreError: {tmp_path}")
        assert "free some space and run the same command again" in lines[0]
    assert num_journalled(tmp_path / "run") > 0
    with start(tmp_path / "run", "plain") as process:
        assert process.wait() == 0
    assert pair_bytes(tmp_path / "run") == pair_bytes(tmp_path / "unbroken")


def test_a_second_process_is_refused_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    with start(tmp_path / "run", "plain", num=20_000) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with start(tmp_path / "run", "plain") as second:
            assert second.stderr is not None
            message = second.stderr.read()
            assert second.wait() == 1
        assert f"in use by process {first.pid} on " in message
        assert len(message.splitlines()) == 1
        with pytest.raises(StoreError, match=f"in use by process {first.pid} on "):
            RunDir(tmp_path / "run")
        first.kill()
        first.wait()
        RunDir(tmp_path / "run").close()


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"journal\.sqlite: file is not a database; move this file away"):
        Journal(path, {"seed": 0})


def test_a_full_disk_while_the_pair_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="no space left on device"):
            make(tmp_path, sample_rows(50))
    assert [entry.name for entry in (tmp_path / "round-0").iterdir() if "pairs" in entry.name] == []
    make(tmp_path, sample_rows(50))
    assert read_pairs(tmp_path / "round-0" / "pairs.parquet")


def test_what_a_kill_left_of_a_pair_file_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "round-0").mkdir(parents=True)
    with RunDir(tmp_path / "fresh") as run:
        folder = run.round_path(0)
        (folder / ".partial-pairs.parquet").write_bytes(b"half")
    make(tmp_path / "fresh", sample_rows(20))
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".")] == []
