"""Who works on a run's samples: one worker in this process, or several in others (`remote`), each with its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.task import Task
from mmalign.engine.work import Worker
from mmalign.lm.protocol import LM
from mmalign.methods import SurveyMethod


class Crew(ABC):
    """One worker or several; the driver hands them samples and writes down what they say."""

    #: How many workers there are; each has as many samples in flight as the run allows one.
    num_workers: int = 1

    @abstractmethod
    def at_work(self, task: Task, concurrency: int) -> AbstractAsyncContextManager[str]:
        """Get ready, and leave at the end; gives the model's name. `concurrency`: samples in flight of each worker.

        Raises MMAlignError, in one line, where a worker cannot be had or cannot load the model.
        """

    @abstractmethod
    async def learned(self, known: Any) -> None:
        """Tell every worker what a two-pass method learned from its surveys, before its second pass."""

    @abstractmethod
    async def work(self, phase: Phase, job: Job) -> Outcome:
        """Have one sample worked on. Raises MMAlignError for what is wrong with the whole run."""


class Here(Crew):
    """One worker, in the driver's own event loop."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm

    @asynccontextmanager
    async def at_work(self, task: Task, concurrency: int) -> AsyncIterator[str]:
        with task.worker(self._lm) as worker:
            self._passes = Passes(worker)
            yield self._lm.name

    async def learned(self, known: Any) -> None:
        self._passes.known = known

    async def work(self, phase: Phase, job: Job) -> Outcome:
        return await self._passes.work(phase, job)


class Passes:
    """A worker with what its method learned: methods of one pass and of two are asked alike."""

    def __init__(self, worker: Worker) -> None:
        self.known: Any = None
        self._worker = worker
        self._surveys = worker.method if isinstance(worker.method, SurveyMethod) else None

    async def work(self, phase: Phase, job: Job) -> Outcome:
        """One sample through one pass."""
        if self._surveys is None:
            return await self._worker.pairs(job.row)
        if phase == "survey":
            return await self._worker.survey(self._surveys, job.row)
        return await self._worker.pairs(job.row, job.survey, self.known)
