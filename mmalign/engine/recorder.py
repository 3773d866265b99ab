"""Takes finished outcomes to the journal in batches, and stops a run in which too many samples are bad."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from mmalign.engine.feed import Feed, InThread
from mmalign.engine.journal import Journal, Outcome, Status
from mmalign.engine.progress import Progress
from mmalign.errors import MMAlignError


class TooManyBad(MMAlignError):
    """A run was stopped because too many samples had to be quarantined; the next start tries those again."""


class Recorder:
    """Outcomes wait here for at most `every_s` seconds or `batch` of them, whichever comes first.

    A kill loses what is waiting; it is made again, to the same result, when the run goes on.
    """

    def __init__(
        self,
        journal: Journal,
        feed: Feed,
        health: Health,
        progress: Progress,
        *,
        in_thread: InThread,
        batch: int,
        every_s: float,
    ) -> None:
        self._journal = journal
        self._feed = feed
        self._health = health
        self._progress = progress
        self._in_thread = in_thread
        self._batch = batch
        self._every_s = every_s
        self._waiting: list[Outcome] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False

    async def add(self, outcome: Outcome) -> None:
        """Take one outcome; waits while the disk is behind. Raises TooManyBad."""
        while len(self._waiting) >= 2 * self._batch:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(outcome)
        if len(self._waiting) >= self._batch:
            self._wake.set()
        self._progress.finished(outcome.status)
        self._health.finished(outcome)

    async def run(self) -> None:
        """Write until `close`. Raises StoreError."""
        while self._waiting or not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            self._room.set()
            await self._in_thread(lambda batch=batch: self._journal.write(batch))  # type: ignore[misc]
            self._feed.closed(outcome.sample_id for outcome in batch)
            if not self._closing:
                self._progress.tick()

    def close(self) -> None:
        """Write what is waiting and end `run`."""
        self._closing = True
        self._wake.set()


class Health:
    """Decides whether a run is worth going on with.

    Args:
        max_bad_share: Most of the finished samples that may be quarantined, in [0, 1].
        at_least: The share counts from this many finished samples on.
        same_fault: As many first samples failing with one and the same unexpected error stop the run at once.
    """

    def __init__(self, max_bad_share: float, *, at_least: int = 50, same_fault: int = 10) -> None:
        self._max_bad_share = max_bad_share
        self._at_least = at_least
        self._same_fault = same_fault
        self._num = 0
        self._bad = 0
        self._fresh = 0
        self._faults: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def found(self, status: Status) -> None:
        """Count a sample that was done before."""
        self._num += 1
        self._bad += status == "quarantined"

    def finished(self, outcome: Outcome) -> None:
        """Count a fresh outcome. Raises TooManyBad."""
        self._num += 1
        self._fresh += 1
        if outcome.status != "quarantined":
            return
        self._bad += 1
        if len(self._reasons) < 1000 or outcome.reason in self._reasons:
            self._reasons[outcome.reason] += 1
        if self._fresh <= self._same_fault and outcome.fault:
            self._faults[outcome.fault] += 1
            if self._faults[outcome.fault] == self._same_fault:
                raise TooManyBad(
                    f"stopped: the first {self._same_fault} samples all failed with {outcome.reason}; "
                    "mend it and run the same command again, they are tried again"
                )
        if self._num >= self._at_least and self._bad > self._max_bad_share * self._num:
            reason, times = self._reasons.most_common(1)[0]
            raise TooManyBad(
                f"stopped: {self._bad} of {self._num} samples had to be quarantined, more than the allowed share of "
                f"{self._max_bad_share:g}; most often ({times} times): {reason}; mend the cause or raise max_bad_share "
                "and run the same command again, they are tried again"
            )
