"""Runs a method over samples: the driver. Many samples at once, memory for a few, and the same pairs whatever happens.

The driver alone reads the data and writes the journal; samples are worked on by `work.Worker`, here in one event loop.
What a sample's outcome is depends on nothing but the sample, the method, the model and the seed, so neither the order
nor an interruption shows in the result.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

from mmalign.engine.feed import Feed, InThread, Job
from mmalign.engine.journal import Journal, Outcome, Phase, Status
from mmalign.engine.progress import Progress, Silent
from mmalign.engine.recorder import Health, Recorder, TooManyBad
from mmalign.engine.results import Summary, Wanted, write_quarantine, write_results
from mmalign.engine.rundir import RunDir
from mmalign.engine.work import AnyMethod, Worker, explain, method_name
from mmalign.errors import Interrupted, MMAlignError, RecipeError
from mmalign.lm.protocol import LM
from mmalign.media.read import MediaLimits, open_media
from mmalign.media.video import interrupt_decoding
from mmalign.methods import SurveyMethod
from mmalign.types import SampleRow

P = ParamSpec("P")

#: Threads that open media; decoding releases the interpreter, so a few keep many samples supplied.
NUM_OPENERS = min(4, os.cpu_count() or 1)

#: Finished outcomes go to the journal when there are this many, and every so many seconds; a kill loses no more.
FLUSH_NUM = 1000
FLUSH_S = 2.0


async def generate_async(
    method: AnyMethod,
    rows: Iterable[SampleRow],
    lm: LM,
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
        lm: The model.
        run: Where everything goes; its journal says what is done already.
        data_root: The folder that media paths start from.
        seed: Same seed, same pairs.
        round: Number of the round.
        limits: What pictures and clips may be, and which frames of a clip are taken.
        concurrency: Samples in flight. It changes speed and memory, never the pairs.
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
    limits = limits or MediaLimits()
    stop = asyncio.Event()
    journal_path = run.round_path(round) / "journal.sqlite"
    with (
        _stopped_by_signals(stop),
        # SQLite and the reading of rows have a thread to themselves, so that the event loop never waits for the disk.
        ThreadPoolExecutor(1, "journal") as store,
        _openers() as openers,
        Journal(journal_path, _maker(method, lm, seed, round, limits)) as journal,
    ):
        worker = Worker(method, lm, seed, round, partial(open_media, root=data_root, limits=limits), openers)
        driver = _Driver(
            worker,
            journal,
            in_thread=lambda act: asyncio.get_running_loop().run_in_executor(store, act),
            stop=stop,
            concurrency=concurrency,
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
        worker: Worker,
        journal: Journal,
        *,
        in_thread: InThread,
        stop: asyncio.Event,
        concurrency: int,
        health: Callable[[], Health],
        progress: Progress,
    ) -> None:
        self.in_thread = in_thread
        self.wanted: dict[Phase, Callable[[int], bool]] = {}
        self.num_found = 0
        self._total: int | None = None
        self._worker = worker
        self._journal = journal
        self._stop = stop
        self._concurrency = concurrency
        self._health = health
        self._progress = progress

    def go_on(self) -> None:
        """Raises Interrupted once the run is to stop."""
        if self._stop.is_set():
            raise Interrupted("interrupted; what is done is kept, run the same command again to go on")

    async def run(self, rows: Iterable[SampleRow], total: int | None, *, retry_quarantined: bool) -> None:
        """All passes of the method over the rows."""
        if retry_quarantined:
            self._journal.set_notes({"retry_until": str(self._journal.last_seq)})
        self._total = len(rows) if total is None and isinstance(rows, Sized) else total
        method, worker = self._worker.method, self._worker
        if not isinstance(method, SurveyMethod):
            await self._run_pass("pairs", rows, lambda job: worker.pairs(job.row))
            return
        if isinstance(rows, Iterator):
            rows = await self.in_thread(lambda: list(rows))
        await self._run_pass("survey", rows, lambda job: worker.survey(method, job.row))
        known = await self.in_thread(lambda: self._learn(method))
        await self._run_pass("pairs", rows, lambda job: worker.pairs(job.row, job.survey, known), surveyed=True)

    async def _run_pass(
        self,
        phase: Phase,
        rows: Iterable[SampleRow],
        work: Callable[[Job], Awaitable[Outcome]],
        *,
        surveyed: bool = False,
    ) -> None:
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
            await self._run_workers(feed, work, recorder)
        finally:
            self._progress.end()

    async def _run_workers(self, feed: Feed, work: Callable[[Job], Awaitable[Outcome]], recorder: Recorder) -> None:
        async def take() -> None:
            while (job := await feed.next()) is not None:
                await recorder.add(await work(job))
                await asyncio.sleep(0)  # A model that answers at once must not keep signals and other workers out.

        writer = asyncio.create_task(recorder.run())
        stopped = asyncio.create_task(self._stop.wait())
        workers = {asyncio.create_task(take()) for _ in range(self._concurrency)}
        left: set[asyncio.Task[Any]] = set(workers)
        try:
            while left:
                ended, _ = await asyncio.wait({*left, writer, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
                self.go_on()
                left -= ended
        finally:
            for task in (*workers, stopped):
                task.cancel()
            await asyncio.gather(*workers, stopped, return_exceptions=True)
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


def _maker(method: AnyMethod, lm: LM, seed: int, round: int, limits: MediaLimits) -> dict[str, Any]:
    """What outcomes hang on, as plain values: a journal is gone on with only by the same maker."""
    return {
        "method": method_name(method),
        "parameters": _parameters(method),
        "source": _source_digest(method),
        "model": lm.name,
        "seed": seed,
        "round": round,
        "limits": _settled(limits),
    }


def _settled(limits: MediaLimits) -> dict[str, Any]:
    """The limits that pairs hang on; how long a decoder may take is a matter of the machine."""
    settled = dataclasses.asdict(limits)
    del settled["clip"]["decode_seconds"]
    return settled


@contextmanager
def _openers() -> Iterator[ThreadPoolExecutor]:
    """Threads that open media. When the run breaks off, nobody waits for what they are decoding."""
    pool = ThreadPoolExecutor(NUM_OPENERS, "media")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        interrupt_decoding()
        raise
    finally:
        pool.shutdown()


def _source_digest(method: AnyMethod) -> str:
    """SHA-256 of the file of a user's method, which changes while it is worked on; "" for the package's own."""
    module = type(method).__module__
    if module.startswith("mmalign."):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def _parameters(method: AnyMethod) -> dict[str, str]:
    cls: Any = type(method)
    return {field.name: _stable(getattr(method, field.name)) for field in dataclasses.fields(cls)}


def _stable(value: Any) -> str:
    # Functions and plain objects show their address, which differs from start to start.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`; the second does what it always does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def on_signal() -> None:
        stop.set()
        restore()

    for number in before:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        restore()
