"""Runs that are killed, or whose disk fails, at chosen moments; and what must hold of a run directory all the time."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self

import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from mmalign.pairs import read_pairs
from mmalign.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "mmalign" / "tiny" / "recipes"
STIC = str(TINY / "stic.yaml")
SMALL = ("--model.device", "cpu", "--train.threads", "1", "--evaluate.scenes", "0")
DRAWN = ("--data.scenes", "3")
TRAINING = (
    *("--train.batch_size", "1", "--train.epochs", "1", "--train.checkpoint_every_steps", "1"),
    *("--train.lora.rank", "2", "--train.lora.dropout", "0.2"),
)
#: A run of everything but measuring; `--output` follows.
WHOLE = ("run", STIC, *SMALL, *DRAWN, *TRAINING)
FULL = "free some space and run the same command again, what is done is kept"


@dataclass(frozen=True)
class Ended:
    """How a run ended: its status (negative: a signal), its words, and how often it was at which place."""

    status: int
    out: str
    err: str
    places: dict[str, int]
    seconds: float

    @property
    def is_killed(self) -> bool:
        return self.status == -SIGKILL

    @property
    def told(self) -> str:
        """The one line that a run ended with, beside its lines of progress."""
        assert self.status == 2, self
        lines = [line for line in self.err.splitlines() if not re.match(r"[a-z ]+: \d+ of \d+|━", line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mmalign: ")
        return lines[0]


class Child:
    """A run in a process of its own."""

    def __init__(self, nursery: Nursery, order: dict[str, Any]) -> None:
        self._nursery, self._order = nursery, order
        self.begun = time.monotonic()
        self.pid = int(nursery.ask({"start": order}))

    def kill(self) -> None:
        os.kill(self.pid, SIGKILL)  # it stays a zombie until `end`, so the number is nobody else's

    def reading(self) -> str:
        """What it has printed so far."""
        return Path(self._order["out"]).read_text(encoding="utf-8")

    def end(self) -> Ended:
        status = int(self._nursery.ask({"wait": self.pid}))
        seconds = time.monotonic() - self.begun
        out, err, places = (Path(self._order[name]) for name in ("out", "err", "places"))
        seen = json.loads(places.read_text(encoding="utf-8") or "{}")
        return Ended(status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"), seen, seconds)


class Nursery:
    """The program `tests.engine.nursery`, after it has done the runs in `warm`."""

    def __init__(self, scratch: Path, warm: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        self._scratch, self._number = scratch, 0
        scratch.mkdir(parents=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.ask({"warm": warm}) == "ready"

    def ask(self, order: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer, "the nursery is dead"
        return answer

    def start(self, deed: str, words: Sequence[str], root: Path, **order: Any) -> Child:
        self._number += 1
        files = {name: str(self._scratch / f"{self._number}.{name}") for name in ("out", "err", "places")}
        for name in files.values():
            Path(name).touch()
        return Child(self, {"deed": deed, "words": list(words), "root": str(root), **files, **order})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Job:
    """A run that can be started in any folder; `kept` gives what must be the same at the end, by name."""

    nursery: Nursery
    deed: str
    words: Callable[[Path], Sequence[str]]
    kept: Callable[[Path], dict[str, Any]]

    def start(self, run: Path, **order: Any) -> Child:
        return self.nursery.start(self.deed, self.words(run), run, **order)

    def whole(self, run: Path) -> Ended:
        """Run to the end, which leaves nothing unreadable and nothing unfinished."""
        ended = self.start(run).end()
        assert (ended.status, ended.err.count("Traceback")) == (0, 0), ended.err
        assert not (problems := unreadable(run) + left_over(run)), problems
        return ended


def kill_again_and_again(job: Job, folder: Path, seed: int, num: int, *, at_most: int = 8) -> Counter[str]:
    """Kill runs of a job until `num` kills have met one that was running; how many of them were where.

    A run is gone on with after a kill, at most `at_most` times, and then let to its end, which must be that of the
    unbroken run. Two of five kills come at a random moment from outside, the others at a change to the disk or a little
    after it, at each place in its turn, so that the rare ones are met as well.
    """
    rng = random.Random(seed)
    unbroken = job.whole(folder / "unbroken")
    wanted = job.kept(folder / "unbroken")
    met: Counter[str] = Counter()
    deck: list[str] = []
    for number in itertools.count():
        run = folder / f"run-{number}"
        for start in range(at_most):
            deck = deck or rng.sample(sorted(unbroken.places), len(unbroken.places))
            way = rng.choices(("moment", "kill", "kill soon"), (2, 2, 1))[0]
            if way == "moment":
                # Early moments more often: what is done need not be done again.
                place, delay = "a random moment", unbroken.seconds * rng.random() ** 2
                child = job.start(run)
                time.sleep(delay)
                child.kill()
            else:
                place = deck.pop()
                at = rng.choice((1, rng.randint(1, unbroken.places[place])))
                child = job.start(run, moment={"place": place, "at": at, "act": way, "delay": rng.uniform(0, 0.02)})
            ended, told = child.end(), f"seed {seed}, run {number}, start {start}: {way} at {place}"
            if not ended.is_killed:
                assert ended.status == 0, f"{told}\n{ended.err}"
                break
            if run.exists():  # else it was too early to mean anything
                assert not (problems := unreadable(run)), f"{told}: {problems}"
                met[place] += 1
            if met.total() >= num:
                break
        job.whole(run)
        if (kept := job.kept(run)) != wanted:
            other = [name for name in {**wanted, **kept} if kept.get(name) != wanted.get(name)]
            raise AssertionError(f"seed {seed}, run {number}: other than unbroken: {other}")
        if met.total() >= num:
            return met
        shutil.rmtree(run)
    raise AssertionError


def left_over(run: Path) -> list[str]:
    """Unfinished files that a finished run should not have left.

    Parts of the reference's numbers, and files of features, have names of their own, since other runs may write to
    their folder at the same time; unfinished ones are cleared away when they are old.
    """
    names = sorted(str(path.relative_to(run)) for path in run.rglob(".*"))
    return [name for name in names if not re.match(r"\.partial-(part-|[0-9a-f]{32}$)", Path(name).name)]


def unreadable(run: Path) -> list[str]:
    """What cannot be read among the files that bear their final name, each with the reason."""
    found = []
    for path in sorted(run.rglob("*")):
        parts = path.relative_to(run).parts
        if path.is_dir() or any(part.startswith(".") for part in parts) or path.suffix == ".partial":
            continue
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.relative_to(run)}: {type(error).__name__}: {error}")
    return found


def read(path: Path) -> None:
    """Read a file as its reader does; raises whatever is wrong with it."""
    match path.suffix:
        case ".lock" | ".sqlite-journal":
            pass  # the journal is read with its database
        case ".sqlite":
            _read_database(path)
        case ".parquet" if path.name == "pairs.parquet":
            read_pairs(path)
        case ".parquet":
            pq.read_table(path)
        case ".jsonl" if path.name == "metrics.jsonl":
            read_metrics(path)  # its last line may be cut off
        case ".jsonl":
            content = path.read_text(encoding="utf-8")
            assert not content or content.endswith("\n")
            for line in content.splitlines():
                json.loads(line)
        case ".json":
            json.loads(path.read_text(encoding="utf-8"))
        case ".yaml":
            assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
        case ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    tensors.get_tensor(name)
        case ".pt":
            torch.load(path, weights_only=True)
        case ".png":
            with Image.open(path) as image:
                image.load()
        case ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        case ".jinja" | ".md":
            assert path.read_text(encoding="utf-8")
        case _:
            raise AssertionError("a file of a kind that this test does not know")


def _read_database(path: Path) -> None:
    """In a copy, because whoever opens it first rolls back what was cut off."""
    with tempfile.TemporaryDirectory() as name:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, name)
        with closing(sqlite3.connect(Path(name) / path.name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def pairs_and_quarantine(run: Path) -> dict[str, Any]:
    """The bytes of what generation leaves."""
    return {name: (run / name).read_bytes() for name in ("round-0/pairs.parquet", "quarantine.jsonl")}


def scripted(nursery: Nursery, name: str, num: int) -> Job:
    """Pairs of `num` samples from a scripted model."""
    return Job(nursery, "scripted", lambda run: [str(run), name, str(num)], pairs_and_quarantine)


def command(nursery: Nursery, *words: str, kept: Callable[[Path], dict[str, Any]] = pairs_and_quarantine) -> Job:
    """A command with `--output`."""
    return Job(nursery, "command", lambda run: [*words, "--output", str(run)], kept)


def weights_and_curve(run: Path) -> dict[str, Any]:
    """What training leaves: weights to the last bit and the numbers of every step."""
    found: dict[str, Any] = pairs_and_quarantine(run) if (run / "quarantine.jsonl").exists() else {}
    for path in sorted(run.rglob("*.safetensors")):
        if path.parent.name in ("model", "adapter", "merged"):
            found[str(path.relative_to(run))] = path.read_bytes()
    for path in sorted(run.rglob("metrics.jsonl")):
        found[str(path.relative_to(run))] = read_metrics(path)
    return found
