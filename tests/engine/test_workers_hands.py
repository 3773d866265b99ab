"""Who is handed what, and who is blamed, with workers that are made up and die at random."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.engine import remote
from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.link import Link, Lost
from mmalign.engine.outpost import Hello, Orders, facts
from mmalign.engine.remote import RemoteCrew
from mmalign.engine.task import Task
from mmalign.errors import MMAlignError, ModelError
from mmalign.media.read import MediaLimits
from tests.engine.cases import Plain, sample_rows
from tests.engine.crews import scripted

TASK = Task(Plain(), 0, 0, Path("/"), MediaLimits())
FACTS = facts(TASK)


class Made(Link):
    """A worker that is made up: dies at a poisonous sample, and when told to."""

    def __init__(self, site: Village) -> None:
        self._site = site
        self._death: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self.at_work: set[str] = set()

    async def begin(self, orders: Orders) -> Hello:
        await asyncio.sleep(0)
        self._site.num_begun += 1
        if self._site.num_begun > 1 and self._site.num_begun in self._site.failing:
            raise self._site.failing[self._site.num_begun]
        return Hello("scripted", "here", 7, FACTS)

    async def learn(self, known: bytes) -> None:
        self._site.num_told += 1
        if self._site.num_told <= self._site.deaf:
            raise await self._death

    def die(self, lost: Lost) -> None:
        if not self._death.done():
            self._death.set_result(lost)

    async def work(self, phase: Phase, job: Job) -> Outcome:
        site, name = self._site, job.row.id
        self.at_work.add(name)
        site.most = max(site.most, len(self.at_work))
        try:
            for _ in range(1 + site.rng.randrange(3)):
                await asyncio.sleep(0)
                self._raise_if_dead()
                if name in site.poison:
                    site.alone[name] += len(self.at_work) == 1
                    self.die(Lost("SIGSEGV"))
                elif site.rng.random() < site.p_kill:
                    self.die(Lost("its node died", by_machine=True))
            if name in site.hanging:
                site.alone[name] += len(self.at_work) == 1
                raise await self._death
            self._raise_if_dead()
            site.done.append(name)
            return Outcome(phase=phase, sample_id=name, status="done", fingerprint=0)
        finally:
            self.at_work.discard(name)

    def _raise_if_dead(self) -> None:
        if self._death.done():
            raise self._death.result()

    async def lost(self) -> Lost:
        return await self._death

    def give_up(self, how: Lost) -> None:
        self.die(how)

    async def end(self) -> None:
        self._site.num_ended += 1


class Village:
    """Where made-up workers live."""

    def __init__(
        self,
        seed: int = 0,
        poison: set[str] | None = None,
        p_kill: float = 0.0,
        failing: dict[int, Exception] | None = None,
        hanging: set[str] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.poison = poison or set()
        self.p_kill = p_kill
        self.failing = failing or {}
        self.hanging = hanging or set()
        self.deaf = 0
        self.done: list[str] = []
        self.alone: Counter[str] = Counter()
        self.most = self.num_begun = self.num_ended = self.num_told = 0

    async def open(self, num_workers: int, concurrency: int) -> None:
        pass

    def link(self, number: int) -> Link:
        return Made(self)

    async def close(self) -> None:
        pass


async def work_all(
    site: Village,
    num: int,
    num_workers: int,
    concurrency: int,
    known: Any = None,
    hung_s: float | None = None,
) -> list[Outcome]:
    crew = RemoteCrew(site, scripted, num_workers, hung_s=hung_s)
    async with crew.at_work(TASK, concurrency):
        if known is not None:
            await crew.learned(known)
        return await asyncio.gather(*(crew.work("pairs", Job(row)) for row in sample_rows(num)))


@pytest.fixture(autouse=True)
def facts_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of packages are read from the disk."""
    monkeypatch.setattr(remote, "facts", lambda task: FACTS)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 32),
    num_workers=st.integers(1, 4),
    concurrency=st.sampled_from([1, 2, 5, 16, 64]),
    poison=st.sets(st.integers(0, 39), max_size=3),
    p_kill=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_only_poison_is_quarantined_and_all_else_is_done(
    seed: int, num_workers: int, concurrency: int, poison: set[int], p_kill: float
) -> None:
    site = Village(seed, {f"sample-{index}" for index in poison}, p_kill)
    before, remote.NUM_IN_ROW = remote.NUM_IN_ROW, 1000
    try:
        outcomes = asyncio.run(work_all(site, 40, num_workers, concurrency))
    finally:
        remote.NUM_IN_ROW = before
    bad = {outcome.sample_id: outcome.reason for outcome in outcomes if outcome.status == "quarantined"}
    assert bad == dict.fromkeys(site.poison, "the worker that had this sample died 3 times (SIGSEGV)")
    assert sorted(site.done) == sorted({row.id for row in sample_rows(40)} - site.poison)
    # Deaths in company blame nobody. One more alone may not count: that others have just ended is learned later.
    assert all(site.alone[name] >= 3 for name in site.poison)
    assert site.most <= concurrency
    assert site.num_ended >= site.num_begun
    assert [outcome.sample_id for outcome in outcomes] == [row.id for row in sample_rows(40)]


def test_full_use_is_made_of_all_workers() -> None:
    site = Village()
    asyncio.run(work_all(site, 40, 1, 16))
    assert site.most == 16


def test_every_worker_is_told_once_what_was_learned() -> None:
    site = Village(poison={"sample-3"})
    asyncio.run(work_all(site, 20, 3, 4, known={"mean": 1}))
    assert site.num_told == site.num_begun > 3


def test_a_worker_that_cannot_start_again_leaves_the_others_at_work(caplog: pytest.LogCaptureFixture) -> None:
    failing: dict[int, Exception] = dict.fromkeys(range(3, 6), ModelError("memory ran out"))
    site = Village(poison={"sample-3"}, failing=failing)
    outcomes = asyncio.run(work_all(site, 20, 2, 4))
    assert [outcome.sample_id for outcome in outcomes if outcome.status != "done"] == ["sample-3"]
    assert "could not be started again: memory ran out" in caplog.text


@pytest.mark.parametrize("error", [ModelError("memory ran out"), Lost("SIGKILL")])
def test_the_run_ends_where_no_worker_can_be_started_again(error: Exception) -> None:
    site = Village(poison={"sample-3"}, failing=dict.fromkeys(range(2, 9), error))
    with pytest.raises(ModelError, match=f"workers died 3 times while they were started .{error}"):
        asyncio.run(work_all(site, 20, 1, 4))


def test_a_mistake_that_a_new_worker_finds_ends_the_run() -> None:
    site = Village(poison={"sample-3"}, failing={2: MMAlignError("the data folder is gone")})
    with pytest.raises(MMAlignError, match="the data folder is gone"):
        asyncio.run(work_all(site, 20, 1, 4))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_many_samples_that_kill_are_quarantined_one_by_one_and_the_run_goes_on(num_workers: int) -> None:
    poison = {f"sample-{index}" for index in range(30, 40)}
    outcomes = asyncio.run(work_all(Village(poison=poison), 40, num_workers, 16))
    assert {outcome.sample_id for outcome in outcomes if outcome.status == "quarantined"} == poison


def test_a_failure_reaches_those_who_wait_while_others_finish() -> None:
    class Failing(Made):
        async def work(self, phase: Phase, job: Job) -> Outcome:
            outcome = await super().work(phase, job)
            crew._fail(MMAlignError("another worker cannot go on"))
            return outcome

    site = Village()
    site.link = lambda number: Failing(site)  # type: ignore[method-assign]
    crew = RemoteCrew(site, scripted, 1)

    async def work() -> list[Outcome | BaseException]:
        async with crew.at_work(TASK, 2):
            return await asyncio.gather(
                *(crew.work("pairs", Job(row)) for row in sample_rows(6)), return_exceptions=True
            )

    outcomes = asyncio.run(work())
    assert [outcome.sample_id for outcome in outcomes if isinstance(outcome, Outcome)] == site.done
    assert {str(error) for error in outcomes if not isinstance(error, Outcome)} == {"another worker cannot go on"}


@pytest.mark.parametrize("concurrency", [1, 4, 16])
async def test_a_sample_with_which_workers_hang_is_quarantined_alone(concurrency: int) -> None:
    site = Village(hanging={"sample-3", "sample-11"})
    outcomes = await work_all(site, 40, 2, concurrency, hung_s=0.05)
    bad = {outcome.sample_id: outcome.reason for outcome in outcomes if outcome.status == "quarantined"}
    reason = "the worker that had this sample died 3 times (it hung: none of its samples was finished for 0.05 s)"
    assert bad == dict.fromkeys(site.hanging, reason)
    assert site.alone == dict.fromkeys(site.hanging, 3)
    assert sorted(site.done) == sorted({f"sample-{number}" for number in range(40)} - site.hanging)


async def test_a_worker_that_finishes_nothing_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "QUIET_S", 0.1)
    looks: list[float] = []
    quiet_s = remote._Member.quiet_s
    monkeypatch.setattr(remote._Member, "quiet_s", lambda member: looks.append(quiet_s(member)) or looks[-1])
    working = asyncio.create_task(work_all(Village(hanging={"sample-3"}), 4, 1, 4))
    while len(caplog.records) < 3:
        assert not working.done()
        await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("worker 0 (process 7 on here) has had 1 samples for 0 min and finished none; if it")
    assert len({int(quiet / 0.1) for quiet in looks if quiet >= 0.1}) == len(told)  # once for each span


@pytest.mark.parametrize("deaf", [1, 2])
async def test_workers_that_hang_while_they_learn_are_replaced(deaf: int, caplog: pytest.LogCaptureFixture) -> None:
    site = Village()
    site.deaf = deaf  # the first of all that are told: with one worker the second is one that was started again
    outcomes = await work_all(site, 20, 1, 4, known={"mean": 1}, hung_s=0.05)
    assert [outcome.status for outcome in outcomes] == ["done"] * 20
    assert caplog.text.count("(it hung: ") == deaf
    assert (site.num_begun, site.num_told) == (deaf + 1, deaf + 1)


async def test_a_worker_without_samples_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    site = Village()
    crew = RemoteCrew(site, scripted, 2, hung_s=0.02)
    async with crew.at_work(TASK, 4):
        await asyncio.sleep(0.2)
        assert (site.num_begun, caplog.records) == (2, [])
        assert (await crew.work("pairs", Job(sample_rows(1)[0]))).status == "done"


async def test_a_driver_that_stands_still_takes_no_worker_for_dead(caplog: pytest.LogCaptureFixture) -> None:
    """As it does when its machine is busy or it was stopped with Ctrl-Z: nobody has heard of what workers finished."""

    class Waiting(Made):
        async def work(self, phase: Phase, job: Job) -> Outcome:
            time.sleep(0.3)  # noqa: ASYNC251  the driver is to stand still
            for _ in range(50):
                await asyncio.sleep(0)
            return await super().work(phase, job)

    site = Village()
    site.link = lambda number: Waiting(site)  # type: ignore[method-assign]
    outcomes = await work_all(site, 3, 1, 2, hung_s=0.2)
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    assert (site.num_begun, caplog.records) == (1, [])
