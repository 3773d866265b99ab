"""What the doctor says of machines that are small, full, or odd, and of what really works on this one."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.cli.doctor import child, limits, machine
from mmalign.cli.doctor.findings import Finding

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a control group around this process."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)

    def put(**values: str) -> None:
        for name, value in values.items():
            (tmp_path / name.replace("_", ".")).write_text(f"{value}\n")

    return put


def found(name: str) -> Finding:
    return next(finding for finding in machine.findings() if finding.check == name)


@pytest.mark.parametrize(
    ("quota", "affinity", "threads", "told", "status"),
    [
        ("max 100000", 8, "4", "8, OMP_NUM_THREADS=4", "ok"),
        ("max 100000", 8, "", "8, OMP_NUM_THREADS is not set", "ok"),
        ("200000 100000", 8, "", "2 of 8 may be used, OMP_NUM_THREADS is not set", "note"),
        ("200000 100000", 8, "2", "2 of 8 may be used, OMP_NUM_THREADS=2", "ok"),
        ("50000 100000", 8, "1", "1 of 8 may be used, OMP_NUM_THREADS=1", "ok"),
        ("max 100000", 3, "8", "3 of 8 may be used, OMP_NUM_THREADS=8", "note"),
        ("odd", 8, "many", "8, OMP_NUM_THREADS=many", "ok"),
        ("", 8, "9", "8, OMP_NUM_THREADS=9", "note"),
    ],
)
def test_cores_that_may_be_used(
    quota: str,
    affinity: int,
    threads: str,
    told: str,
    status: str,
    cgroup: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if quota:
        cgroup(cpu_max=quota)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    line = found("cores")
    assert (line.found, line.status) == (told, status)
    assert line.remedy.startswith(f"export OMP_NUM_THREADS={told[0]}" if status == "note" else "")


@pytest.mark.parametrize(
    ("limit", "used", "free", "told", "status"),
    [
        ("max", "0", 30, "30.0 of 64.0 GiB free", "ok"),
        (str(128 * GIB), "0", 30, "30.0 of 64.0 GiB free", "ok"),
        (str(16 * GIB), str(6 * GIB), 30, "10.0 GiB free, this container may use 16.0 of 64.0 GiB", "ok"),
        (str(16 * GIB), str(15 * GIB), 30, "1.0 GiB free, this container may use 16.0 of 64.0 GiB", "note"),
        ("max", "0", 2, "2.0 of 64.0 GiB free", "note"),
    ],
)
def test_memory_of_the_container(
    limit: str,
    used: str,
    free: int,
    told: str,
    status: str,
    cgroup: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cgroup(memory_max=limit, memory_current=used)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free * GIB, total=64 * GIB))
    line = found("memory")
    assert (line.found, line.status, bool(line.remedy)) == (told, status, status == "note")


def test_a_folder_for_temporary_files_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(30, "Read-only file system\x1b")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    temporary, here = found("temporary files"), found("this folder")
    assert (temporary.status, here.status) == ("broken", "note")
    assert "cannot be written (Read-only file system\\x1b)" in temporary.found
    assert temporary.remedy == "set TMPDIR to a folder that can be written"


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=GIB, total=GIB // 16))
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 1024))
    assert found("temporary files").remedy == "free some space, or set TMPDIR"
    assert "--shm-size=8g" in found("shared memory").remedy
    assert (found("open files").found, found("open files").remedy) == ("at most 256 at once", "ulimit -n 1024")


def test_much_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=900 * GIB, total=900 * GIB))
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "none")
    monkeypatch.setattr("resource.getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert found("shared memory").found == "there is no /dev/shm on this system"
    assert found("open files").found == "at most any number at once"
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    assert found("open files").remedy == "ulimit -n 65536"
    assert not any(found(name).remedy for name in ("temporary files", "this folder", "shared memory"))


def test_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda do: "ANSI_X3.4-1968")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "utf-8")
    assert (found("text encoding").found, found("text encoding").remedy) == (
        "ansix3.41968, utf8",
        "export PYTHONUTF8=1",
    )


def test_the_hub_and_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert found("hub cache").found == f"{tmp_path}/hub, not there yet"
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    assert found("hub cache").found.startswith(f"{tmp_path}/hub, 1 models, ")
    assert found("hub").found == "asked only with --model.download true"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found("hub").found == "never asked (HF_HUB_OFFLINE)"


def test_a_machine_that_cannot_be_looked_at_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("odd\nmachine")

    for name in ("psutil.virtual_memory", "shutil.disk_usage", "os.cpu_count", "resource.getrlimit"):
        monkeypatch.setattr(name, fail)
    odd = {f.check: f for f in machine.findings() if f.status == "note"}
    assert {"memory", "cores", "open files", "temporary files"} <= set(odd)
    assert odd["memory"].found == "cannot be told: RuntimeError: odd"


def test_limits_are_those_of_a_recipe() -> None:
    told = {finding.check: finding.found for finding in limits.findings()}
    assert told["data.max_pixels"] == "100,000,000 pixels of a picture or frame"
    assert told["data.max_seconds"] == "3,600 s of a video"
    assert "262,144" in told["chat"]
    assert told["prompt in the data"].endswith(" characters")


def test_what_is_here_really_works() -> None:
    names = ["pillow", "pyarrow", "video by pyav", "torch", "torchvision", "attention", "accelerator"]
    outcomes = child.run(names, seconds=600)  # a first import may take its time
    assert {name: outcome.found for name, outcome in outcomes.items() if not outcome.is_well} == {}
    assert outcomes["attention"].found.startswith("sdpa on c")
    assert outcomes["video by pyav"].found == "decodes a frame"


def test_a_dry_run_loads_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(child, "run", lambda names: pytest.fail("loads"))
    before = set(sys.modules)
    assert main(["doctor", "--dry-run"]) == 0
    told = capsys.readouterr().out
    for words in (
        "what mmalign needs",
        "extras",
        "this machine",
        "limits in force",
        "data.max_side",
        "nothing was tried",
    ):
        assert words in told
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("torch", "ray", "transformers")}
