"""What holds of workers in other processes, wherever they run (`processes`, `rays`)."""

from __future__ import annotations

from typing import Protocol

from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.outpost import Hello, Orders


class Lost(Exception):
    """A worker died or hangs; the text says how. `by_machine`: together with its machine, so by no sample's fault."""

    def __init__(self, how: str, *, by_machine: bool = False) -> None:
        super().__init__(how)
        self.by_machine = by_machine


class Link(Protocol):
    """One worker in another process, from its start to its end. It is never used again after it was lost."""

    async def begin(self, orders: Orders) -> Hello:
        """Start the worker and wait until its model is loaded. Raises Lost, and MMAlignError as the worker told."""

    async def learn(self, known: bytes) -> None:
        """Raises Lost, and MMAlignError as the worker told."""

    async def work(self, phase: Phase, job: Job) -> Outcome:
        """Raises Lost, and MMAlignError where the whole run must stop."""

    async def lost(self) -> Lost:
        """Wait until the worker dies."""

    def give_up(self, how: Lost) -> None:
        """Take a worker that does not answer for lost, and kill it; whatever waits for it now raises `how`."""

    async def end(self) -> None:
        """End the worker at once, in whatever state it is."""


class Site(Protocol):
    """Where workers run."""

    async def open(self, num_workers: int, concurrency: int) -> None:
        """`concurrency`: samples in flight of each worker. Raises MMAlignError where no worker can be had."""

    def link(self, number: int) -> Link:
        """A new worker for this place among the workers."""

    async def close(self) -> None: ...
