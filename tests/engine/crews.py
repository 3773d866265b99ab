"""Models, methods and a site for the tests of workers, and a program that runs with workers in processes."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mmalign.engine import RunDir, Silent, Summary, generate
from mmalign.engine.crew import Crew
from mmalign.engine.journal import Status
from mmalign.engine.outpost import Opener
from mmalign.engine.processes import Processes
from mmalign.engine.remote import RemoteCrew
from mmalign.errors import MMAlignError, ModelError, RecipeError
from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import LM
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods import method
from mmalign.types import Completion, Pair, Row, Sample, SampleRow
from tests.engine.cases import METHODS, WARM, Plain, TwoPass, answer, sample_rows


def scripted(number: int) -> LM:
    return ScriptedLM(answer)


def unloadable(number: int, **_: Any) -> LM:
    raise ModelError("model.name 'no/model': there is no such folder")


def broken(number: int) -> LM:
    raise TypeError("no such argument")


def dies(number: int) -> LM:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def other(number: int) -> LM:
    return ScriptedLM(answer, name=f"scripted-{number}")


def hangs(number: int) -> LM:
    print("loading", flush=True)
    while True:
        signal.pause()


def crew(num_workers: int = 2, opener: Opener = scripted, hung_s: float | None = None) -> Crew:
    return RemoteCrew(Processes(), opener, num_workers, hung_s=hung_s)


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a driver that live."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):
            if "mmalign.engine.process" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@method("poisoned", media=("image", "text"))
class Poisoned(Plain):
    """The worker that looks at one of some samples dies; around it, others are at work."""

    poison: tuple[str, ...] = ()

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        for _ in range(3):
            await asyncio.sleep(0.002)
        if sample.id in self.poison:
            ctypes.string_at(0)
        async for pair in super().pairs(sample, lm, rng):
            yield pair


@method("slow", media=("image", "text"))
class Slow(Plain):
    """Takes a moment for each sample; `once` names files that are made by the worker that dies, before it dies."""

    once: tuple[str, ...] = ()

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        await asyncio.sleep(0.005 + 0.01 * random.random())
        for name in self.once:
            if Path(name).stem == sample.id:
                with suppress(FileExistsError):
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
        async for pair in super().pairs(sample, lm, rng):
            yield pair


@method("hanging", media=("image", "text"))
class Hanging(Plain):
    """Stands still at one sample for ever, with all that its worker does."""

    hang: str = ""

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        while sample.id == self.hang:
            time.sleep(60)  # noqa: ASYNC251  the whole worker is to stand still
        async for pair in super().pairs(sample, lm, rng):
            yield pair


@method("wrong", media=("image", "text"))
class Wrong(Plain):
    """Finds in a worker that the recipe is wrong."""

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        raise RecipeError("method.strength: too strong for this model")
        yield


class Learned:
    """What a method may have learned: an object of its own."""

    def __init__(self, mean: float, extra: Any = None) -> None:
        self.mean = mean
        self.extra = extra


@method("learned", media=("image", "text"))
class Learner(TwoPass):
    """As its parent, with what it learns in an object; one that cannot be sent, if wanted."""

    is_stuck: bool = False

    def learn(self, surveys: Iterable[Row]) -> Any:
        return Learned(super().learn(surveys), (lambda: None) if self.is_stuck else None)

    async def pairs(
        self, sample: Sample, lm: SampleLM, rng: random.Random, survey: Row, known: Any
    ) -> AsyncIterator[Pair]:
        if survey["value"] < known.mean:
            return
        chat = sample.ask(sample.prompt)
        yield Pair(chat, await lm.generate(chat, WARM), Completion(survey["text"]), gap=survey["value"] - known.mean)


ALL: dict[str, type] = {**METHODS, "slow": Slow, "learned": Learner}


class Then(Silent):
    """Does something when so many samples have been finished."""

    def __init__(self, then: dict[int, Callable[[], object]]) -> None:
        self._then = then
        self._num = 0

    def finished(self, status: Status) -> None:
        self._num += 1
        if self._num in self._then:
            self._then[self._num]()


def with_crew(path: Path, rows: Iterable[SampleRow], way: Any, crew: Crew | LM, **more: Any) -> Summary:
    """Generate into a run directory under `path`."""
    with RunDir(path) as run:
        return generate(way, rows, crew, run=run, **{"data_root": path, "concurrency": 8, **more})


def main(arguments: Sequence[str]) -> int:
    """`PATH OPENER NUM`: one run with two workers."""
    path, opener, num = arguments
    logging.basicConfig(format="%(message)s")
    try:
        with_crew(Path(path), sample_rows(int(num)), Slow(), crew(2, globals()[opener]))
    except MMAlignError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
