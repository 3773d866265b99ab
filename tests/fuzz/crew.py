"""Has files taken through their doors in processes of their own: one that hangs or crashes costs its file only."""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: What a worker runs.
WORKER = str(ROOT / "tests" / "fuzz" / "worker.py")

#: Seconds that a file may take through all of its doors. Decoders are ended after 20; the rest is for a busy machine.
HANGS_AFTER = 180.0

#: Where the address space of a worker ends: more than any file may take, less than the machine has.
ADDRESS_SPACE = 16 * 2**30


class _Worker:
    def __init__(self, seed: int, place: Path) -> None:
        self._errors = place / "stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", WORKER, str(seed), str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
                preexec_fn=_bounded,
            )

        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is ready, or has ended, which is told with its first file

    def verdict(self, number: int) -> dict[str, Any]:
        """What became of a file; "hang" and "crash" end the worker."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(self._process.pid, signal.SIGKILL)

        watch = threading.Timer(HANGS_AFTER, end)
        watch.start()
        try:
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watch.cancel()
        if answer.endswith("\n"):
            row: dict[str, Any] = json.loads(answer)
            return row
        told = "hangs" if late.is_set() else f"crashes, exit status {self._process.wait()}: {self._last_words()}"
        return {"number": number, "told": "bug", "reason": told, "kind": "?", "case": f"number {number}", "ended": True}

    def _last_words(self) -> str:
        return self._errors.read_text(errors="replace")[-2000:].strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process:
            self._process.stdin.close()


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def verdicts(seed: int, numbers: Iterable[int], place: Path, workers: int = 2) -> Iterator[dict[str, Any]]:
    """The verdicts of `tests.fuzz.worker`, as they come; `told` is "accepted", "refused" or "bug"."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    count = 0
    for number in numbers:
        todo.put(number)
        count += 1

    def work(index: int) -> None:
        folder = place / f"worker {index}"
        folder.mkdir(parents=True)
        worker = _Worker(seed, folder)
        try:
            while True:
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                row = worker.verdict(number)
                done.put(row)
                if row.get("ended"):
                    worker.close()
                    worker = _Worker(seed, folder)
        finally:
            worker.close()

    with ThreadPoolExecutor(workers) as pool:
        working = [pool.submit(work, index) for index in range(workers)]
        for _ in range(count):
            while True:
                try:
                    yield done.get(timeout=1.0)
                    break
                except queue.Empty:
                    for task in working:
                        if task.done():
                            task.result()
        for task in working:
            task.result()
