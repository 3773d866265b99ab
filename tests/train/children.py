"""Training in child processes that a test stops with real signals, alone or two at a time over gloo."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import distributed

from mmalign.objectives import DPO, LossInputs, LossOutput, Need, Objective

#: Seconds after which a child that does not end is lost.
PATIENCE_S = 60.0
#: Children start from this process as it is: no second import of torch.
FORK = get_context("fork")


class Child:
    """A process that does `work`; `outcome` is what it ended with."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._told, telling = FORK.Pipe(duplex=False)
        self.process: Any = FORK.Process(target=_do, args=(work, telling), daemon=True)
        self.process.start()
        telling.close()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def outcome(self) -> str:
        """The word done, or the error as kind and text, or the number of what killed it."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, "the child hangs"
        try:
            return str(self._told.recv())
        except EOFError:
            return f"killed by {-self.process.exitcode}"


def ranks(work: Callable[[], Any], store: Path, world: int = 2) -> list[Child]:
    """`world` children that do the same together."""
    return [Child(lambda rank=rank: _as_rank(work, store, rank, world)) for rank in range(world)]


def _as_rank(work: Callable[[], Any], store: Path, rank: int, world: int) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in names.items()})
    patience = timedelta(seconds=PATIENCE_S / 2)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    work()


def _do(work: Callable[[], Any], telling: Any) -> None:
    # What the parent knew of processes is not true of its children.
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        work()
    except BaseException as error:
        telling.send(f"{type(error).__name__}: {error}")
    else:
        telling.send("done")
    telling.close()


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """DPO that says in `folder` when its call `at` has begun, and goes on once it is told to."""

    name: ClassVar[str] = "dpo"
    folder: Path
    at: int
    calls: list[int] = field(default_factory=list)
    inner: Objective = field(default_factory=DPO)

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def needs(self) -> frozenset[Need]:
        return self.inner.needs

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        self.calls.append(1)
        if len(self.calls) == self.at:
            meet(self.folder)
        return self.inner(inputs)


def meet(folder: Path) -> None:
    """Say that this point is reached, and wait to be let go."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reached").touch()
    _until((folder / "go").exists)


def when_met(folder: Path, *children: Child) -> None:
    """Wait until one of the children is at its `meet`."""
    _until(lambda: (folder / "reached").exists() or not all(child.process.is_alive() for child in children))
    assert (folder / "reached").exists(), [child.outcome() for child in children]


def let_go(folder: Path) -> None:
    (folder / "go").touch()


def _until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.005)
