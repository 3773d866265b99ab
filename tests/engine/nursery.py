"""A program that has everything imported and forks a process for each run, so that a run costs no start of its own.

It reads one JSON object per line and answers with one. `{"start": {...}}` forks a run and gives its process id,
`{"wait": pid}` gives what it ended with (negative: the number of the signal). A run notes every moment at which it
changes something on the disk; at a chosen one of them it kills itself (-9), a little after it, or the disk fails there.
"""

from __future__ import annotations

import ctypes
import datetime
import errno
import gc
import json
import os
import random
import re
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

#: What Python tells of before it does it, with the place of the path among the arguments.
AUDITED = {"open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0}
#: Seconds after which a run that hangs is ended.
PATIENCE_S = 300
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Moments:
    """Counts the changes to files below `root`, by kind and name, and acts at the chosen one.

    `act` is what to do when `place` is reached for the `at`-th time: "kill", "kill soon" (after `delay` seconds, while
    the run goes on), or the name of an error such as "ENOSPC", which from then on meets every change.
    """

    def __init__(self, root: Path, place: str = "", at: int = 0, act: str = "", delay: float = 0.0) -> None:
        self.root, self.place, self.at, self.act, self.delay = str(root), place, at, act, delay
        self.seen: Counter[str] = Counter()
        self.failing = False

    def watch(self) -> None:
        sys.addaudithook(self._audited)
        fsync, connect = os.fsync, sqlite3.connect

        def flush(handle: int) -> None:
            self.reached("fsync", str(Path(f"/proc/self/fd/{handle}").readlink()))
            fsync(handle)

        moments = self

        class Watched(sqlite3.Connection):
            def execute(self, statement: str, *more: Any) -> Any:
                if statement.startswith("COMMIT"):
                    moments.reached("commit", f"{moments.root}/journal")
                return super().execute(statement, *more)

            def commit(self) -> None:
                moments.reached("commit", f"{moments.root}/journal")
                super().commit()

        os.fsync = flush
        sqlite3.connect = lambda *args, **options: connect(*args, **{"factory": Watched, **options})

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in AUDITED:
            return
        path = args[AUDITED[event]]
        if event == "open" and not (args[2] or 0) & WRITING:
            return
        if isinstance(path, str | os.PathLike | bytes):
            self.reached(event, os.path.abspath(os.fsdecode(path)))  # noqa: PTH100  # it follows no links

    def reached(self, event: str, path: str) -> None:
        if not path.startswith(self.root):
            return
        place = f"{event} {named(path[len(self.root) :])}"
        self.seen[place] += 1
        if self.failing or (place == self.place and self.seen[place] == self.at):
            self._do(event, path)

    def _do(self, event: str, path: str) -> None:
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.act == "kill soon":
            threading.Thread(target=self._kill_soon, daemon=True).start()
        elif event not in ("os.remove", "os.rmdir"):
            self.failing = True
            if event == "commit":
                full = "database or disk is full"
                raise sqlite3.OperationalError("attempt to write a readonly database" if self.act == "EROFS" else full)
            number = getattr(errno, self.act)
            raise OSError(number, os.strerror(number), path)

    def _kill_soon(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def named(path: str) -> str:
    """A path with its numbers and random parts left out."""
    return re.sub(r"[0-9a-f]{16,}|\d+|(?<=\.html\.).*", "N", path.lstrip("/"))


def wild_clock(seed: int) -> None:
    """From now on the time of day jumps both ways, by minutes to years, at every look, and clocks that only go on leap.

    Those never go back on any system, and who waits with them may rely on it.
    """
    rng, leapt = random.Random(seed), 0.0
    day, clocks = time.time, {name: getattr(time, name) for name in ("monotonic", "perf_counter")}

    def leap(clock: Callable[[], float]) -> float:
        nonlocal leapt
        leapt += rng.choice((0.0, 0.0, 0.5, 3600.0))
        return clock() + leapt

    for name, clock in clocks.items():
        setattr(time, name, partial(leap, clock))
    time.time = lambda: max(0.0, day() + rng.choice((0.0, -1.0, 1.0)) * rng.choice((60.0, 86_400.0, 4e8)))
    time.time_ns = lambda: int(time.time() * 1e9)

    class Wild(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(time.time(), tz)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("mmalign") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Wild  # type: ignore[attr-defined]


def scripted(path: str, name: str, num: str, flush: str = "7", changed: str = "") -> int:
    """Pairs from a scripted model, with frequent writes to the journal; errors as the command line tells them."""
    from mmalign.engine import generate
    from mmalign.engine.rundir import RunDir
    from mmalign.errors import MMAlignError
    from tests.engine.cases import METHODS, SlowLM, answer, sample_rows

    module: Any = sys.modules["mmalign.engine.generate"]
    module.FLUSH_NUM, module.FLUSH_S = int(flush), 0.02
    try:
        with RunDir(Path(path)) as run:
            run.begin({"method": name, "num": int(num)})
            generate(METHODS[name](), sample_rows(int(num)), SlowLM(answer), run=run, data_root=Path(path))
    except MMAlignError as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    return 0


def command(*words: str) -> int:
    from mmalign.cli import main

    return main(words)


def without_page(*words: str) -> int:
    """A command that leaves out the page, which takes longer than all the rest."""
    import mmalign.report

    mmalign.report.write_report = lambda path: path
    return command(*words)


def cached(folder: str) -> int:
    """Features and the reference's numbers of six pairs, found in a folder's caches or made and kept there."""
    import torch

    from mmalign.errors import MMAlignError
    from mmalign.train.cache.parts import Numbers, Parts
    from mmalign.train.cache.tensor_cache import TensorCache

    wanted = {f"row-{number}": torch.arange(500.0) + number for number in range(6)}
    lengths = torch.tensor([500, 0])
    try:
        cache, parts = TensorCache(Path(folder) / "features", 1 << 20), Parts(Path(folder) / "reference" / "key")
        for key, values in wanted.items():
            found = cache.get(key)
            assert found is None or torch.equal(found["x"], values)
            if found is None:
                cache.put(key, {"x": values})
            if key not in parts.read([key]):
                parts.write({key: Numbers(lengths, lengths, values)})
        known = parts.read(wanted)
        for key, values in wanted.items():
            logps = known[key].logps
            assert logps is not None
            assert torch.equal(values, logps)
    except MMAlignError as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    return 0


def replaced(folder: str, version: str, exchanges: str) -> int:
    """A folder of two files in the place of what was there; where names cannot change places, unless it `exchanges`."""
    from mmalign import atomic
    from mmalign.errors import MMAlignError

    if exchanges != "True":
        atomic._exchanged = lambda one, other: False
    try:
        with atomic.replacing(Path(folder) / "model") as partial:
            (partial / "b").mkdir(parents=True)
            (partial / "a").write_text(version)
            (partial / "b" / "c").write_text(version)
    except MMAlignError as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    return 0


DEEDS = {found.__name__: found for found in (scripted, command, without_page, cached, replaced)}


def child(order: dict[str, Any]) -> int:
    """One run, as the order has it; its exit status."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the nursery, whatever becomes of that
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    err = os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.alarm(PATIENCE_S)
    if "clock" in order:
        wild_clock(order["clock"])
    moments = Moments(Path(order["root"]), **order.get("moment", {}))
    moments.watch()
    noted = os.open(order["places"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if "places" in order else None
    if "largest" in order:
        # Writing beyond it is an error (EFBIG), or the end of the process in the middle of a write.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN if order["survives"] else signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "user" in order:
        os.setgroups([])
        os.setgid(order["user"])
        os.setuid(order["user"])
    code = DEEDS[order["deed"]](*order["words"])
    if noted is not None:
        os.write(noted, json.dumps(moments.seen).encode())
    return code


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm = json.loads(sys.stdin.readline())["warm"]
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, kept = nowhere, sys.stdout
        for deed, words in warm:
            DEEDS[deed](*words)
        sys.stdout = kept
    gc.collect()
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    code = child(order["start"])
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            print(pid, file=answers, flush=True)
        else:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
