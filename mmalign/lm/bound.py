"""The model as a method sees it: bound to one sample, with a seed for every call."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mmalign.errors import ModelError
from mmalign.lm.protocol import LM, Option
from mmalign.types import Chat, Choice, Completion, Sampling, TokenLogps

GREEDY = Sampling()


def call_seed(seed: int, round: int, sample_id: str, *call: int) -> int:
    """63 bits of SHA-256 over (seed, round, sample id, number of the call; where that is within a task, both)."""
    text = json.dumps([seed, round, sample_id, *call], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(eq=False)
class _Count:
    """Numbers of the calls that one task makes; `start` is the number that the task itself has."""

    calls: _Calls
    task: asyncio.Task[Any] | None
    start: tuple[int, ...] = ()
    next: int = 0

    def take(self) -> tuple[int, ...]:
        self.next += 1
        return (*self.start, self.next - 1)


class _Calls:
    """Numbers of the calls about one sample. Tasks that run side by side do not take them from each other."""

    def __init__(self) -> None:
        self.total = 0
        self._first = _Count(self, _task())

    def take(self) -> tuple[int, ...]:
        self.total += 1
        own = _COUNT.get()
        if own is None or own.calls is not self:
            own = self._first
        task = _task()
        own.task = own.task or task
        if own.task is task:
            return own.take()
        # The first call of a task is one of those that started it: tasks start in the order in which they were made.
        number = own.take()
        _COUNT.set(_Count(self, task, number, 1))
        return number


#: The count of the task that runs; tasks inherit that of the one by which they were started.
_COUNT: ContextVar[_Count | None] = ContextVar("count", default=None)


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no event loop runs


class SampleLM:
    """An LM for one sample.

    A call is numbered when it is made, not when it is awaited, so answers do not depend on which of several awaited
    calls happens to run first. `generate_n` takes n numbers; `score` and `choose` take one each and draw nothing.
    Tasks (`asyncio.gather` of coroutines) that make several calls each number all but the first for themselves, so
    answers do not depend on which of them gets ahead either, if each calls before it waits for anything else.

    Args:
        lm: the model that answers.
        sample_id, seed, round: what the seed of each call is made of.
        checkpoints: other models that `at` can switch to, by name ("initial", ...).
    """

    def __init__(
        self, lm: LM, *, sample_id: str, seed: int = 0, round: int = 0, checkpoints: Mapping[str, LM] | None = None
    ) -> None:
        self._lm = lm
        self._sample_id, self._seed, self._round = sample_id, seed, round
        self._checkpoints = dict(checkpoints or {})
        self._calls = _Calls()  # shared with the checkpoints' views

    @property
    def name(self) -> str:
        """Which weights answer."""
        return self._lm.name

    @property
    def num_calls(self) -> int:
        """Calls made so far, to any checkpoint."""
        return self._calls.total

    def generate(self, chat: Chat, sampling: Sampling = GREEDY) -> Awaitable[Completion]:
        """One answer."""
        return self._lm.generate(chat, sampling, seed=self._next_seed())

    def generate_n(self, chat: Chat, n: int, sampling: Sampling) -> Awaitable[list[Completion]]:
        """`n` answers, each with its own seed."""
        seeds = [self._next_seed() for _ in range(n)]

        async def answers() -> list[Completion]:
            return list(await asyncio.gather(*(self._lm.generate(chat, sampling, seed=seed) for seed in seeds)))

        return answers()

    def score(self, chat: Chat, texts: Sequence[str]) -> Awaitable[list[TokenLogps]]:
        """Log-probabilities of each text as the whole answer."""
        self._next_seed()
        return self._lm.score(chat, texts)

    def choose(self, chat: Chat, options: Sequence[Option]) -> Awaitable[Choice]:
        """Next-token probabilities of the options."""
        self._next_seed()
        return self._lm.choose(chat, options)

    def at(self, checkpoint: str) -> SampleLM:
        """The same sample asked at another checkpoint; calls are counted together."""
        if checkpoint not in self._checkpoints:
            known = ", ".join(sorted(self._checkpoints)) or "none"
            raise ModelError(f"there is no checkpoint {checkpoint!r} in this run (known: {known})")
        other = SampleLM(
            self._checkpoints[checkpoint],
            sample_id=self._sample_id,
            seed=self._seed,
            round=self._round,
            checkpoints=self._checkpoints,
        )
        other._calls = self._calls
        return other

    def _next_seed(self) -> int:
        return call_seed(self._seed, self._round, self._sample_id, *self._calls.take())
