"""A worker away from the driver: what it is built from, and what it answers. How the two talk is left to others.

Orders and answers hold plain values, and neither weights nor pixels. They are pickled on the way, between processes
of one run that run the same code; nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign import errors
from mmalign.engine.crew import Passes
from mmalign.engine.environment import version_of
from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.task import NUM_OPENERS, Task
from mmalign.engine.work import Worker, method_name
from mmalign.errors import MMAlignError, RecipeError
from mmalign.lm.protocol import LM
from mmalign.own_code import file_of, module_at

#: Makes the model of the worker with this number, where that worker runs; importable there. Raises MMAlignError.
Opener = Callable[[int], LM]

#: Packages whose versions pairs may hang on.
_PACKAGES = ("mmalign", "torch", "transformers", "pillow", "av")


@dataclass(frozen=True, slots=True)
class Orders:
    """All that a worker is built from."""

    module: str
    """The module of the method."""
    file: str | None
    """Where that is a file of the user's: its path, the same on every machine."""
    source: str
    """The file's SHA-256."""
    content: bytes
    landmarks: list[str]

    @classmethod
    def of(cls, task: Task, opener: Opener) -> Orders:
        """Raises RecipeError for a method that cannot be had in another process."""
        module = type(task.method).__module__
        file = file_of(module)
        try:
            content = pickle.dumps((task, opener))
        except Exception as error:  # a user's parameters may be anything
            raise RecipeError(
                f"method {method_name(task.method)}: cannot be sent to other workers ({error}); use generate.workers: 1"
            ) from None
        path = None if file is None else str(file)
        return cls(module, path, task.maker()["source"], content, task.landmarks())


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says when it is ready: its model, where it is, and on what its outcomes hang beside the model."""

    model: str
    host: str
    process: int
    facts: dict[str, Any]


def facts(task: Task) -> dict[str, Any]:
    """What must be the same in all processes of a run, so that each of them makes the same pairs."""
    return task.maker() | {"versions": {name: version_of(name) for name in _PACKAGES}}


class Outpost:
    """The worker. Loading the model may take minutes and blocks.

    Args:
        orders: What the driver wants done.
        number: Which of the workers this is, from 0.

    Raises MMAlignError where the orders cannot be followed here.
    """

    def __init__(self, orders: Orders, number: int) -> None:
        task, opener = _read(orders)
        task.look_for(orders.landmarks)
        lm = opener(number)
        pool = ThreadPoolExecutor(NUM_OPENERS, "media")
        self._passes = Passes(Worker(task.method, lm, task.seed, task.round, task.open, pool))
        self.hello = Hello(lm.name, socket.gethostname(), os.getpid(), facts(task))

    def learn(self, known: bytes) -> None:
        """Take what a two-pass method learned."""
        self._passes.known = pickle.loads(known)  # noqa: S301  the driver of this very run sent it

    async def work(self, phase: Phase, job: Job) -> Outcome:
        """What became of a sample. Raises MMAlignError where the whole run must stop."""
        return await self._passes.work(phase, job)


def told(error: Exception) -> MMAlignError:
    """An error as it is sent to the driver: one line. One that nobody meant to raise also shows where it came from."""
    if isinstance(error, MMAlignError):
        known: list[type[MMAlignError]] = [cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
        return known[0](str(error))
    traceback.print_exception(error)
    line = next(iter(str(error).strip().splitlines()), "")
    return MMAlignError(f"a worker failed with {type(error).__name__}: {line}")


def _read(orders: Orders) -> tuple[Task, Opener]:
    if orders.file is not None:
        _import(orders.file, orders)
    try:
        task, opener = pickle.loads(orders.content)  # noqa: S301  the driver of this very run sent it
    except Exception as error:
        raise RecipeError(
            f"method.name: {orders.module} cannot be imported on {socket.gethostname()} with {sys.executable} ({error})"
        ) from None
    return task, opener


def _import(file: str, orders: Orders) -> None:
    """Run the file of a user's method under the name that the driver knows its module by."""
    host = socket.gethostname()
    try:
        module = module_at(file)
    except LookupError as error:
        raise RecipeError(f"method.name: {error.args[0]} (on {host}; it must be there under the same path)") from None
    if hashlib.sha256(Path(file).read_bytes()).hexdigest() != orders.source:
        raise RecipeError(
            f"method.name: {file} on {host} is not the file that this run was started with; start the run again"
        )
    sys.modules.setdefault(orders.module, module)  # the name hangs on the path, which may lead over links there


def packed(known: Any, task: Task) -> bytes:
    """What a method learned, to be sent. Raises RecipeError where it cannot be."""
    try:
        return pickle.dumps(known)
    except Exception as error:  # it may be anything
        raise RecipeError(
            f"method {method_name(task.method)}: what `learn` gave cannot be sent to other workers ({error}); "
            "give plain values, or use generate.workers: 1"
        ) from None
