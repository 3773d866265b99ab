"""Workers as processes on this machine. Each is a program of its own, not a fork: it holds none of the driver's locks.

Driver and worker talk over a socket, in frames of a length and a pickled (number, value). The worker's standard input
is a pipe that only the driver holds and that nobody writes to: it ends when the driver does, however that dies, and the
worker then ends itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.link import Link, Lost
from mmalign.engine.outpost import Hello, Orders
from mmalign.errors import MMAlignError

_START = "import sys; sys.path[:] = {path!r}; from mmalign.engine.process import main; main({socket}, {number})"

#: The length of a frame.
HEAD = struct.Struct("<Q")

#: Seconds that the last words of a dead worker are waited for: a program that it started may hold its output open.
LAST_WORDS_S = 2.0

#: Different lines of workers that are remembered, and bytes of one; a longer one is told in pieces.
_MAX_LINES, _MAX_LINE = 10_000, 2**16

#: Seconds that a killed worker is waited for: one that is stuck in the system's own code dies when that ends.
TO_DIE_S = 10.0

#: Signals that stop a run go to all of its processes; the driver says when a worker's work is over.
STOPPING = (signal.SIGINT, signal.SIGTERM)


class Processes:
    """This machine as the place where workers run.

    Args:
        cpus: Processor cores of each worker, which are its threads; by default all cores shared out among them.
    """

    def __init__(self, cpus: float | None = None) -> None:
        self._cpus = cpus
        self._env: dict[str, str] = {}
        self._log = _Log()

    async def open(self, num_workers: int, concurrency: int) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, int(cores / num_workers if self._cpus is None else self._cpus))
        self._env = {"OMP_NUM_THREADS": str(threads), **(os.environ if self._cpus is None else {})}

    def link(self, number: int) -> Link:
        return _Process(number, {**os.environ, **self._env}, self._log)

    async def close(self) -> None:
        pass


class _Process(Link):
    """One worker; `end` is for every state that it can be in."""

    def __init__(self, number: int, env: dict[str, str], log: _Log) -> None:
        self._number = number
        self._env = env
        self._log = log
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._lost: Lost | None = None
        self._gone = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def begin(self, orders: Orders) -> Hello:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(self._number, theirs, self._env)
        self._relay = threading.Thread(target=self._log.relay, args=(self._number, self._process.stdout), daemon=True)
        self._relay.start()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen(reader, self._process))
        hello: Hello = await self._ask(orders)
        return hello

    async def learn(self, known: bytes) -> None:
        await self._ask(known)

    async def work(self, phase: Phase, job: Job) -> Outcome:
        outcome: Outcome = await self._ask((phase, job))
        return outcome

    async def lost(self) -> Lost:
        assert self._listening is not None
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({self._listening, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self._lost is None:
            self._listening.result()
        assert self._lost is not None
        return self._lost

    def give_up(self, how: Lost) -> None:
        # Not when it is dead: it may be stuck in a driver of the system, and what it started may hold its socket open.
        self._lose(how)
        assert self._process is not None
        self._process.kill()

    async def end(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._process is None:
            return
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, TO_DIE_S)
        await asyncio.to_thread(self._relay.join, LAST_WORDS_S)
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _ask(self, request: Any) -> Any:
        """The answer. Raises Lost, and MMAlignError where that is the answer."""
        if self._lost is not None:
            raise self._lost
        assert self._writer is not None
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame(number, request))
            with suppress(ConnectionError):  # `_listen` tells what became of it
                await self._writer.drain()
            said = await answer
        finally:
            self._waiting.pop(number, None)
        if isinstance(said, MMAlignError):
            raise said
        return said

    async def _listen(self, reader: asyncio.StreamReader, process: subprocess.Popen[bytes]) -> None:
        """Pass answers on until the worker is no more."""
        with suppress(EOFError, ConnectionError):
            while True:
                number, value = await read_frame(reader)
                waiting = self._waiting.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(value)
        await asyncio.to_thread(_end_of, process)
        await asyncio.to_thread(self._relay.join, LAST_WORDS_S)  # its last words come before the news of its death
        self._lose(Lost(_fate(process.returncode)))

    def _lose(self, how: Lost) -> None:
        """Let all who wait for the worker know; the first reason counts."""
        self._lost = self._lost or how
        self._gone.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._lost)


def frame(number: int, value: Any) -> bytes:
    """A message as it is sent."""
    content = pickle.dumps((number, value))
    return HEAD.pack(len(content)) + content


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """The next message. Raises EOFError where the other side is gone."""
    (size,) = HEAD.unpack(await reader.readexactly(HEAD.size))
    number, value = pickle.loads(await reader.readexactly(size))  # noqa: S301  between processes of one run
    return number, value


def _start(number: int, theirs: socket.socket, env: dict[str, str]) -> subprocess.Popen[bytes]:
    path = [place for place in sys.path if isinstance(place, str)]  # Python too passes over what is no text
    code = _START.format(path=path, socket=theirs.fileno(), number=number)
    # The worker is born deaf to the signals that stop a run, and says itself from when on it ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=env,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # it closed its socket and lives on
        process.kill()
        process.wait()


def _fate(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps memory ran out" if name == "SIGKILL" else name


@dataclass(slots=True)
class _Said:
    """How often a worker has said each line, since all of that was last forgotten."""

    counts: Counter[str] = field(default_factory=Counter)
    age: int = 0


class _Log:
    """What workers print goes to standard error, with the worker's number; what all of them say is told once."""

    def __init__(self) -> None:
        self._told = _Said()
        self._lock = threading.Lock()

    def relay(self, number: int, stream: IO[bytes]) -> None:
        """Pass lines on until the worker is no more."""
        own = _Said()
        with stream:
            while line := stream.readline(_MAX_LINE):
                text = line.decode("utf-8", "replace").rstrip()
                if text and self._is_new(text, own):
                    with suppress(OSError):  # nobody reads it; the worker must not wait for that
                        print(f"worker {number}: {text}", file=sys.stderr, flush=True)

    def _is_new(self, text: str, own: _Said) -> bool:
        """Whether no other worker has said it as often as this one."""
        with self._lock:
            if len(self._told.counts) >= _MAX_LINES:
                self._told = _Said(age=self._told.age + 1)
            if own.age != self._told.age:
                own.counts.clear()
                own.age = self._told.age
            own.counts[text] += 1
            is_new = own.counts[text] > self._told.counts[text]
            self._told.counts[text] = max(self._told.counts[text], own.counts[text])
        return is_new
