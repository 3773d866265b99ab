"""A crew of workers in other processes: hands samples out, and again when the worker that had them died.

A dead worker is replaced. Which of its samples killed it, if any did, cannot be seen from outside, so all that it had
are suspects: they are tried again a few together, then alone. Only a sample that kills a worker several times with
nothing else at work there goes to quarantine. Where the machine died, nobody is a suspect.

A worker may also hang, in a driver of a GPU or in a method's own code. That is told, and where the run has a bound for
it the worker is taken for dead.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mmalign.engine.crew import Crew
from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.link import Link, Lost, Site
from mmalign.engine.outpost import Hello, Opener, Orders, facts, packed, told
from mmalign.engine.rundir import differences
from mmalign.engine.task import Task
from mmalign.engine.work import fingerprint, storable
from mmalign.errors import MMAlignError, ModelError, RecipeError

log = logging.getLogger("mmalign.engine")

#: A sample goes to quarantine when so many workers died that had it alone.
NUM_ALONE = 3
#: After so many deaths in a row while it is started, there is no further try to start a worker.
NUM_STARTS = 3
#: When workers died so often and no sample was finished or quarantined in between, the run ends. With many workers: 3
#: times each.
NUM_IN_ROW = 10
#: After so many seconds in which a worker had samples and finished none it is told of, and again after each more.
QUIET_S = 600.0


class RemoteCrew(Crew):
    """Workers in other processes.

    Args:
        site: Where they run.
        opener: Makes the model of each.
        num_workers: How many there are.
        hung_s: Seconds in which a worker that has samples may finish none before it is taken for dead; for ever where
            it is None.
    """

    def __init__(self, site: Site, opener: Opener, num_workers: int, *, hung_s: float | None = None) -> None:
        self.num_workers = num_workers
        self._site = site
        self._opener = opener
        self._hung_s = math.inf if hung_s is None else hung_s
        self._places = set(range(num_workers))
        self._endings: list[asyncio.Task[None]] = []
        self._last = ""
        self._members: dict[int, _Member] = {}
        self._suspects: deque[_Case] = deque()
        self._fresh: deque[_Case] = deque()
        self._known: bytes | None = None
        self._failure: MMAlignError | None = None
        self._num_in_row = 0

    @asynccontextmanager
    async def at_work(self, task: Task, concurrency: int) -> AsyncIterator[str]:
        self._task, self._concurrency, self._facts = task, concurrency, facts(task)
        self._model = asyncio.get_running_loop().create_future()
        orders = Orders.of(task, self._opener)
        keepers: list[asyncio.Task[None]] = []
        try:
            await self._site.open(self.num_workers, concurrency)
            keepers += [asyncio.create_task(self._keep(number, orders)) for number in range(self.num_workers)]
            yield await self._model
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await asyncio.gather(*self._endings, return_exceptions=True)
            await self._site.close()

    async def learned(self, known: Any) -> None:
        self._known = packed(known, self._task)
        told = [self._teach(member, self._known) for member in self._members.values()]
        for answer in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, Lost):
                raise answer

    async def _teach(self, member: _Member, known: bytes) -> None:
        lesson = _Case(self._concurrency)  # it counts as a sample, so that a worker that hangs at it is seen
        member.begin(lesson)
        try:
            await member.link.learn(known)
        finally:
            member.leave(lesson)

    async def _taught(self, link: Link, known: bytes) -> None:
        """The same with a worker that has just been started."""
        try:
            async with asyncio.timeout(None if self._hung_s == math.inf else self._hung_s):
                await link.learn(known)
        except TimeoutError:
            raise Lost(f"it hung: what was learned took it more than {self._hung_s:g} s") from None

    async def work(self, phase: Phase, job: Job) -> Outcome:
        case = _Case(self._concurrency)
        while True:
            member = await self._place(case)
            try:
                outcome = await member.link.work(phase, job)
            except Lost as lost:
                case.survived(lost, alone=member.crowd_at_death() == 1)
                if case.num_alone == NUM_ALONE:
                    self._num_in_row = 0
                    return _quarantined(phase, job, str(lost))
                continue
            finally:
                member.leave(case)
                self._hand_out()
            self._num_in_row = 0
            return outcome

    async def _place(self, case: _Case) -> _Member:
        """A worker with room for the sample; the room is taken."""
        while True:
            if self._failure is not None:
                raise self._failure
            case.place = asyncio.get_running_loop().create_future()
            queue = self._suspects if case.is_suspect else self._fresh
            if case.is_suspect and case.company == 1:  # decided first: one worker less is kept from the others
                queue.appendleft(case)
            else:
                queue.append(case)
            self._hand_out()
            try:
                member = await case.place
            except BaseException:
                if case in queue:
                    queue.remove(case)
                elif case.place.done() and not case.place.cancelled() and case.place.exception() is None:
                    case.place.result().leave(case)
                raise
            if not member.is_lost:
                return member
            member.leave(case)

    def _hand_out(self) -> None:
        """Give samples that wait to workers with room for them, suspects first."""
        for case in list(self._suspects):
            if member := self._with_room(case):
                self._suspects.remove(case)
                member.take(case)
        while self._fresh and (member := self._with_room(self._fresh[0])):
            member.take(self._fresh.popleft())

    def _with_room(self, case: _Case) -> _Member | None:
        """Of the workers that can take this sample too, the one that has the fewest."""
        free = [member for member in self._members.values() if member.has_room(case)]
        return min(free, key=lambda member: len(member.cases), default=None)

    async def _keep(self, number: int, orders: Orders) -> None:
        """Keep one place among the workers filled, as long as that makes sense."""
        num_starts, was_ready = 0, False
        while self._failure is None and num_starts < NUM_STARTS:
            link, member = self._site.link(number), None
            try:
                hello = await link.begin(orders)
                self._check(number, hello)
                if self._known is not None:
                    await self._taught(link, self._known)
                self._members[number] = member = _Member(link)
                num_starts, was_ready = 0, True
                self._hand_out()
                raise await self._end_of(number, hello, member)
            except Lost as lost:
                num_starts += member is None and not lost.by_machine
                self._mourn(number, lost, member)
            except Exception as error:
                if was_ready and isinstance(error, ModelError):  # the one before may not have given its memory back yet
                    num_starts += 1
                    self._last = str(error)
                    log.warning("worker %d could not be started again: %s", number, error)
                else:
                    self._fail(told(error))
            finally:
                self._members.pop(number, None)
                ending = asyncio.create_task(link.end())
                self._endings.append(ending)
                await asyncio.shield(ending)
        self._places.discard(number)
        if not self._places:
            self._fail(
                ModelError(
                    f"workers died {NUM_STARTS} times while they were started ({self._last}); "
                    "where memory ran out, take fewer generate.workers"
                )
            )

    async def _end_of(self, number: int, hello: Hello, member: _Member) -> Lost:
        """Wait until the worker dies, or is given up because it hangs."""
        losing = asyncio.create_task(member.link.lost())
        num_told = 0
        try:
            while not losing.done():
                began, span = time.monotonic(), min(QUIET_S, self._hung_s) / 10
                await asyncio.wait({losing}, timeout=span)
                member.excuse(time.monotonic() - began - span)
                quiet_s = member.quiet_s()
                if quiet_s >= self._hung_s:
                    member.link.give_up(Lost(f"it hung: none of its samples was finished for {self._hung_s:g} s"))
                    return await losing
                if (times := int(quiet_s / QUIET_S)) > num_told:
                    log.warning(
                        "worker %d (process %d on %s) has had %d samples for %.0f min and finished none; if it hangs, "
                        "`kill -9` it: they are handed out again, which generate.hung_s does by itself",
                        number,
                        hello.process,
                        hello.host,
                        len(member.cases),
                        quiet_s / 60,
                    )
                num_told = times
            return losing.result()
        finally:
            losing.cancel()

    def _check(self, number: int, hello: Hello) -> None:
        """Refuse a worker that would make other pairs. Raises RecipeError."""
        if not self._model.done():
            self._model.set_result(hello.model)
        ours = {"model": self._model.result(), **self._facts}
        if other := differences(ours, {"model": hello.model, **hello.facts}):
            raise RecipeError(
                f"worker {number} on {hello.host} would make other pairs than this process "
                f"({'; '.join(other.values())}); install the same on all machines"
            )

    def _mourn(self, number: int, lost: Lost, member: _Member | None) -> None:
        """Tell of a worker that died; end the run where nothing is gained by starting others."""
        self._last = str(lost)
        self._num_in_row += 1
        most = max(NUM_IN_ROW, 3 * self.num_workers)
        if self._num_in_row == most:
            self._fail(
                MMAlignError(
                    f"workers died {most} times and no sample was finished in between, the last one: {lost}; "
                    "mend the cause and run the same command again, what is done is kept"
                )
            )
        elif member is None:
            log.warning("worker %d died while it was started (%s)", number, lost)
        else:
            again = "the samples that it had (%d) are handed out again"
            log.warning(f"worker %d died (%s); {again}", number, lost, member.crowd_at_death())

    def _fail(self, error: MMAlignError) -> None:
        """End the run with this line."""
        self._failure = self._failure or error
        if not self._model.done():
            self._model.set_exception(error)
        for case in (*self._suspects, *self._fresh):
            if not case.place.done():
                case.place.set_exception(error)
        self._suspects.clear()  # before they are handed out by somebody who ends at the same time
        self._fresh.clear()


@dataclass(eq=False, slots=True)
class _Case:
    """A sample on its way, and how often its worker died."""

    concurrency: int
    num_lost: int = 0
    num_alone: int = 0
    place: asyncio.Future[_Member] = field(init=False)

    @property
    def is_suspect(self) -> bool:
        return self.num_lost > 0

    @property
    def company(self) -> int:
        """How many samples may be at work together with this one, itself included."""
        return [self.concurrency, math.isqrt(self.concurrency), 1][min(self.num_lost, 2)]

    def survived(self, lost: Lost, *, alone: bool) -> None:
        """The sample is still there, its worker is not."""
        if not lost.by_machine:
            self.num_lost += 1
            self.num_alone += alone


@dataclass(eq=False, slots=True)
class _Member:
    """A worker that is ready, and the samples that it has."""

    link: Link
    cases: set[_Case] = field(default_factory=set)
    _sign: float = 0.0
    _crowd: int | None = None

    @property
    def is_lost(self) -> bool:
        return self._crowd is not None

    def crowd_at_death(self) -> int:
        """How many samples it had when its death was noticed; the first call notices."""
        if self._crowd is None:
            self._crowd = len(self.cases)
        return self._crowd

    def has_room(self, case: _Case) -> bool:
        return not self.is_lost and len(self.cases) < min(
            case.company, min((other.company for other in self.cases), default=case.company)
        )

    def quiet_s(self) -> float:
        """For how many seconds it has had samples and finished none."""
        return time.monotonic() - self._sign if self.cases else 0.0

    def excuse(self, seconds: float) -> None:
        """Leave out time in which this process stood still: it could not have heard of a sample."""
        self._sign += max(0.0, seconds)

    def take(self, case: _Case) -> None:
        self.begin(case)
        case.place.set_result(self)

    def begin(self, case: _Case) -> None:
        if not self.cases:
            self._sign = time.monotonic()
        self.cases.add(case)

    def leave(self, case: _Case) -> None:
        self.cases.discard(case)
        self._sign = time.monotonic()


def _quarantined(phase: Phase, job: Job, how: str) -> Outcome:
    return Outcome(
        phase=phase,
        sample_id=storable(job.row.id),
        status="quarantined",
        fingerprint=fingerprint(job.row),
        stage=phase,
        path=storable(", ".join(ref.path for ref in job.row.media)),
        reason=f"the worker that had this sample died {NUM_ALONE} times ({how})",
        fault="a dead worker",
    )
