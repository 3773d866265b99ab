"""The machine: cores, memory, disk and what else work here is bounded by."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from mmalign.cli.doctor.child import reason
from mmalign.cli.doctor.findings import Finding

GIB = 2**30
#: Less than this is worth a remark: free memory, free disk, shared memory in bytes, and open files.
LITTLE_MEMORY, LITTLE_DISK, LITTLE_SHARED, FEW_FILES = 4 * GIB, 5 * GIB, GIB, 4096
_CGROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")


def findings() -> list[Finding]:
    """All lines about the machine; what cannot be looked at is a remark, never an error."""
    looks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "cores": _cores,
        "memory": _memory,
        "temporary files": lambda: _folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR", needed=True),
        "this folder": lambda: _folder("this folder", Path.cwd(), "cd elsewhere or give --output", needed=False),
        "shared memory": _shared,
        "open files": _files,
        "text encoding": _encoding,
        "hub": _hub,
        "hub cache": _cache,
    }
    found = []
    for name, look in looks.items():
        try:
            found.append(look())
        except Exception as error:  # a machine can be odd in any way, and a doctor must not fall ill
            found.append(Finding("machine", name, "note", reason(f"cannot be told: {type(error).__name__}: {error}")))
    return found


def _python() -> Finding:
    return Finding("machine", "python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def cores() -> tuple[int, int]:
    """How many cores this process may use, and how many the machine has."""
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    return allowed, there


def _cores() -> Finding:
    allowed, there = cores()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{allowed}" if allowed == there else f"{allowed} of {there} may be used"
    found += f", OMP_NUM_THREADS={threads}" if threads else ", OMP_NUM_THREADS is not set"
    most = int(threads) if threads.isdigit() else 0
    if most > allowed or (not threads and allowed < there):
        return Finding(
            "machine",
            "cores",
            "note",
            found,
            f"export OMP_NUM_THREADS={allowed}: more threads than cores wait for each other",
        )
    return Finding("machine", "cores", "ok", found)


def _memory() -> Finding:
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    limit = _read(_CGROUP / "memory.max").strip()
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if limit.isdigit() and int(limit) < total:
        used = _read(_CGROUP / "memory.current").strip()
        free = min(free, int(limit) - int(used or 0))
        found = (
            f"{max(free, 0) / GIB:.1f} GiB free, this container may use {int(limit) / GIB:.1f} of {total / GIB:.1f} GiB"
        )
    if free < LITTLE_MEMORY:
        return Finding("machine", "memory", "note", found, "end other programs, or give the container more memory")
    return Finding("machine", "memory", "ok", found)


def _folder(name: str, folder: Path, remedy: str, *, needed: bool) -> Finding:
    """Whether a file can be written there, and the room that is left."""
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mmalign-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        why = f"{folder}: cannot be written ({error.strerror or error})"
        return Finding(
            "machine", name, "broken" if needed else "note", reason(why), f"{remedy} to a folder that can be written"
        )
    if free < LITTLE_DISK:
        return Finding("machine", name, "note", found, f"free some space, or {remedy}")
    return Finding("machine", name, "ok", found)


def _shared() -> Finding:
    if not _SHARED.is_dir():
        return Finding("machine", "shared memory", "ok", "there is no /dev/shm on this system")
    size = shutil.disk_usage(_SHARED).total
    found = f"{_SHARED}, {size / GIB:.1f} GiB"
    if size < LITTLE_SHARED:
        return Finding(
            "machine",
            "shared memory",
            "note",
            found,
            "start the container with --shm-size=8g: Ray and several GPUs need it",
        )
    return Finding("machine", "shared memory", "ok", found)


def _files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {'any number' if soft == resource.RLIM_INFINITY else f'{soft:,}'} at once"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        most = FEW_FILES * 16 if hard == resource.RLIM_INFINITY else hard
        return Finding("machine", "open files", "note", found, f"ulimit -n {min(most, FEW_FILES * 16)}")
    return Finding("machine", "open files", "ok", found)


def _encoding() -> Finding:
    used = {sys.getfilesystemencoding(), locale.getpreferredencoding(False), sys.stdout.encoding or "ascii"}
    names = sorted({name.lower().replace("-", "").replace("_", "") for name in used})
    if names != ["utf8"]:
        return Finding("machine", "text encoding", "note", ", ".join(names), "export PYTHONUTF8=1")
    return Finding("machine", "text encoding", "ok", "UTF-8")


def _hub() -> Finding:
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = "never asked (HF_HUB_OFFLINE)" if is_offline else "asked only with --model.download true"
    return Finding("machine", "hub", "ok", found)


def _cache() -> Finding:
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    if not folder.is_dir():
        return Finding("machine", "hub cache", "ok", f"{folder}, not there yet")
    num = sum(1 for entry in folder.iterdir() if entry.name.startswith("models--"))
    return Finding(
        "machine", "hub cache", "ok", f"{folder}, {num} models, {shutil.disk_usage(folder).free / GIB:.1f} GiB free"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
