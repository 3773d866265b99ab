"""Runs a method over samples: the driver. Many samples at once, memory for a few, and the same pairs whatever happens.

The driver alone reads the data and writes the journal; samples are worked on by a `crew`, in this process or in others.
What a sample's outcome is depends on nothing but the sample, the method, the model and the seed, so neither the order
nor an interruption shows in the result.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from mmalign.chunked import SampleRows
from mmalign.engine.crew import Crew, Here
from mmalign.engine.feed import Feed, InThread
from mmalign.engine.journal import Journal, Phase, Status
from mmalign.engine.known import Wants
from mmalign.engine.progress import Progress, Silent
from mmalign.engine.recorder import Health, Recorder, TooManyBad
from mmalign.engine.results import Summary, Wanted, write_quarantine, write_results
from mmalign.engine.rundir import RunDir
from mmalign.engine.stopping import interrupted, stopped_by_signals, unless
from mmalign.engine.task import Task
from mmalign.engine.work import AnyMethod, explain
from mmalign.errors import MMAlignError, RecipeError
from mmalign.lm.protocol import LM
from mmalign.media.read import MediaLimits
from mmalign.methods import SurveyMethod
from mmalign.types import SampleRow

P = ParamSpec("P")

#: Finished outcomes go to the journal when there are this many, and every so many seconds; a kill loses no more.
FLUSH_NUM = 1000
FLUSH_S = 2.0


async def generate_async(
    method: AnyMethod,
    rows: Iterable[SampleRow],
    lm: LM | Crew,
    *,
    run: RunDir,
    data_root: Path,
    seed: int = 0,
    round: int = 0,
    limits: MediaLimits | None = None,
    concurrency: int = 64,
    max_bad_share: float = 0.5,
    retry_quarantined: bool = False,
    progress: Progress | None = None,
    total: int | None = None,
) -> Summary:
    """Make the pairs of a round, or those that are still missing, and write `round-N/pairs.parquet`.

    Args:
        method: Makes the pairs of one sample.
        rows: The samples, read lazily. A two-pass method reads them twice, so an iterator is then held in memory.
        lm: The model, which then works in this process; or workers elsewhere, each with its own.
        run: Where everything goes; its journal says what is done already.
        data_root: The folder that media paths start from.
        seed: Same seed, same pairs.
        round: Number of the round.
        limits: What pictures and clips may be, and which frames of a clip are taken.
        concurrency: Samples in flight of each worker. It changes speed and memory, never the pairs.
        max_bad_share: Stop when more than this share of at least 50 finished samples had to be quarantined.
        retry_quarantined: Try the samples again that earlier starts put into quarantine.
        progress: Told how far it is; silent by default.
        total: Number of rows, for the time to go; known without it where `rows` has a length.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with everything that was finished in the journal.
        TooManyBad: Too many samples failed; the next start tries them again.
        RecipeError: A wrong value.
        DataError: A sample id occurs twice.
        StoreError: The run directory cannot be used.
    """
    if concurrency < 1:
        raise RecipeError(f"generate.concurrency: got {concurrency}, must be at least 1")
    if not 0 <= max_bad_share <= 1:
        raise RecipeError(f"generate.max_bad_share: got {max_bad_share}, must lie in [0, 1]")
    began = time.monotonic()
    task = Task.of(method, seed, round, data_root, limits or MediaLimits())
    crew = lm if isinstance(lm, Crew) else Here(lm)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(stopped_by_signals(stop))
        # SQLite and the reading of rows have a thread to themselves, so that the event loop never waits for the disk.
        store = stack.enter_context(ThreadPoolExecutor(1, "journal"))
        model = await unless(stop, stack.enter_async_context(crew.at_work(task, concurrency)))
        journal_path = run.round_path(round) / "journal.sqlite"
        journal = stack.enter_context(Journal(journal_path, {**task.maker(), "model": model}))
        driver = _Driver(
            task.method,
            crew,
            journal,
            in_thread=lambda act: asyncio.get_running_loop().run_in_executor(store, act),
            stop=stop,
            concurrency=concurrency * crew.num_workers,
            health=lambda: Health(max_bad_share),
            progress=progress or Silent(),
        )
        wanted: Wanted = driver.wanted
        try:
            await driver.run(rows, total, retry_quarantined=retry_quarantined)
        except TooManyBad:
            journal.set_notes({"retry_until": str(journal.last_seq)})
            write_quarantine(run, round, journal, wanted)
            raise
        summary: Summary = await driver.in_thread(
            lambda: write_results(run, round, journal, method, wanted, driver.go_on)
        )
    summary.resumed = driver.num_found
    summary.seconds = time.monotonic() - began
    return summary


def _in_own_loop(work: Callable[P, Coroutine[Any, Any, Summary]]) -> Callable[P, Summary]:
    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> Summary:
        return asyncio.run(work(*args, **kwargs))

    return run


#: `generate_async` for callers without an event loop.
generate = _in_own_loop(generate_async)


class _Driver:
    def __init__(
        self,
        method: AnyMethod,
        crew: Crew,
        journal: Journal,
        *,
        in_thread: InThread,
        stop: asyncio.Event,
        concurrency: int,
        health: Callable[[], Health],
        progress: Progress,
    ) -> None:
        self.in_thread = in_thread
        self.wanted: dict[Phase, Wants] = {}
        self.num_found = 0
        self._total: int | None = None
        self._method = method
        self._crew = crew
        self._journal = journal
        self._stop = stop
        self._concurrency = concurrency
        self._health = health
        self._progress = progress

    def go_on(self) -> None:
        """Raises Interrupted once the run is to stop."""
        if self._stop.is_set():
            raise interrupted()

    async def run(self, rows: Iterable[SampleRow], total: int | None, *, retry_quarantined: bool) -> None:
        """All passes of the method over the rows."""
        if retry_quarantined:
            self._journal.set_notes({"retry_until": str(self._journal.last_seq)})
        if total is None:
            total = rows.total if isinstance(rows, SampleRows) else len(rows) if isinstance(rows, Sized) else None
        self._total = total
        method = self._method
        if not isinstance(method, SurveyMethod):
            await self._run_pass("pairs", rows)
            return
        if isinstance(rows, Iterator):
            rows = await self.in_thread(lambda: list(rows))
        await self._run_pass("survey", rows)
        await self._crew.learned(await self.in_thread(lambda: self._learn(method)))
        await self._run_pass("pairs", rows, surveyed=True)

    async def _run_pass(self, phase: Phase, rows: Iterable[SampleRow], *, surveyed: bool = False) -> None:
        health = self._health()

        def found(status: Status) -> None:
            health.found(status)
            self._progress.found(status)
            self.num_found += phase == "pairs"

        feed = Feed(
            rows,
            self._journal,
            phase,
            in_thread=self.in_thread,
            retry_until=int(self._journal.note("retry_until") or 0),
            surveyed=surveyed,
            found=found,
        )
        self.wanted[phase] = feed.wants
        recorder = Recorder(
            self._journal,
            feed,
            health,
            self._progress,
            in_thread=self.in_thread,
            batch=FLUSH_NUM,
            every_s=FLUSH_S,
        )
        self._progress.start(phase, self._total)
        try:
            await self._run_takers(phase, feed, recorder)
        finally:
            self._progress.end()

    async def _run_takers(self, phase: Phase, feed: Feed, recorder: Recorder) -> None:
        async def take() -> None:
            while (job := await feed.next()) is not None:
                await recorder.add(await self._crew.work(phase, job))
                await asyncio.sleep(0)  # A model that answers at once must not keep signals and other samples out.

        writer = asyncio.create_task(recorder.run())
        stopped = asyncio.create_task(self._stop.wait())
        takers = {asyncio.create_task(take()) for _ in range(self._concurrency)}
        left: set[asyncio.Task[Any]] = set(takers)
        try:
            while left:
                ended, _ = await asyncio.wait({*left, writer, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
                self.go_on()
                left -= ended
        finally:
            for task in (*takers, stopped):
                task.cancel()
            await asyncio.gather(*takers, stopped, return_exceptions=True)
            recorder.close()
            await writer

    def _learn(self, method: SurveyMethod) -> Any:
        """What the method learns from all surveys; pairs that were made with other knowledge are forgotten."""
        digest = hashlib.sha256()

        def surveys() -> Iterator[Any]:
            for seq, survey in self._journal.all_made("survey"):
                if self.wanted["survey"](seq):
                    self.go_on()
                    digest.update(json.dumps(survey, sort_keys=True).encode() + b"\n")
                    yield survey

        rows = surveys()
        try:
            known = method.learn(rows)
        except MMAlignError:
            raise
        except Exception as error:
            raise MMAlignError(f"method {type(method).__name__}: learn failed with {explain(error, method)}") from error
        for _ in rows:
            pass  # A method may stop early; the digest is of all.
        if self._journal.note("surveys") not in (None, digest.hexdigest()):
            self._journal.clear("pairs")
        self._journal.set_notes({"surveys": digest.hexdigest()})
        return known
