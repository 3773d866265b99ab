"""Trials in child processes: a broken wheel can raise, crash, end or hang the process that imports it.

A child runs one trial after the other, as they share what takes long to import, and notes in a file which one it is at.
When it dies or takes too long, that trial has failed and another child goes on with the next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.errors import one_line

#: Seconds that one trial may take. Importing can be slow on a busy machine.
SECONDS = 60.0
#: Seconds that a child may take to start.
_START_S = 60.0
_POLL_S = 0.02
#: Most characters of a reason.
_MAX_REASON = 160
#: Children see what this process sees, in the same order.
_START = "import sys; sys.path[:] = {path!r}; from mmalign.cli.doctor.trials import main; main({names!r}, {notes!r})"
_QUIET = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended: `found` when it went well, else why not; `advice` where it knows a remedy or has a remark."""

    is_well: bool
    found: str
    advice: str = ""


def run(names: Sequence[str], seconds: float = SECONDS, stopping: threading.Event | None = None) -> dict[str, Outcome]:
    """Outcomes of trials by their names (`mmalign.cli.doctor.trials`), in order. Raises nothing of what they raise.

    Once `stopping` is set the child is ended, and what is found is worth nothing.
    """
    stopping = stopping or threading.Event()
    found: dict[str, Outcome] = {}
    left = list(names)
    while left and not stopping.is_set():
        found |= _one_child(left, seconds, stopping)
        left = [name for name in left if name not in found]
    return found


def _one_child(names: Sequence[str], seconds: float, stopping: threading.Event) -> dict[str, Outcome]:
    """Outcomes of the first trials, at least one of them."""
    with tempfile.TemporaryDirectory(prefix="mmalign-doctor-", ignore_cleanup_errors=True) as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        with (Path(folder) / "log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, names=list(names), notes=str(notes))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_QUIET},
                start_new_session=True,
            )
        try:
            is_late = not _wait(child, notes, seconds, stopping)
        finally:
            _end(child)
        found = _read(notes)
        if len(found) < len(names):
            log_text = (Path(folder) / "log").read_text(encoding="utf-8", errors="replace")
            reason = f"does not answer within {seconds:g} s" if is_late else _death(child.returncode, log_text)
            found[names[len(found)]] = Outcome(False, reason)
        return found


def _wait(child: subprocess.Popen[bytes], notes: Path, seconds: float, stopping: threading.Event) -> bool:
    """Until the child ends or has to. False when it adds no note for so long."""
    size, since = -1, time.monotonic()
    while child.poll() is None and not stopping.is_set():
        now = notes.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > (seconds if size else _START_S):
            return False
        time.sleep(_POLL_S)
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()


def _read(notes: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for line in notes.read_bytes().split(b"\n")[1:-1]:
        name, is_well, text, advice = json.loads(line)
        found[name] = Outcome(is_well, reason(text), one_line(advice))
    return found


def _death(status: int, log: str) -> str:
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"crashes ({name})"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it says nothing")
    return reason(f"ends the process (exit {status}): {last}")


def reason(text: str) -> str:
    """One line that is short enough for a table."""
    line = one_line(next((line.strip() for line in text.splitlines() if line.strip()), "")).rstrip(" :")
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 3]}..."
