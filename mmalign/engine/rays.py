"""Workers as Ray actors, on this machine or on many (`engine: ray`).

Ray places and starts actors; what to do when one dies is decided by the crew (`remote`), so Ray is told to restart
nothing by itself. Nothing is uploaded: every node has mmalign installed and sees data, models and methods of one's own
under the same paths.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mmalign.engine.feed import Job
from mmalign.engine.journal import Outcome, Phase
from mmalign.engine.link import Link, Lost
from mmalign.engine.outpost import Hello, Orders, Outpost, told
from mmalign.errors import MMAlignError, RecipeError

log = logging.getLogger("mmalign.engine")

#: What a worker waits for is told after so many seconds, and again after each further span.
WAIT_S = (10.0, 60.0, 600.0)

#: Calls of an actor that may be under way beside the samples: that it lives, and what it is to learn.
_BESIDE = 4

#: Settings of a cluster that is started here. Samples are small and never spilled, so that a disk of which more than
#: a share is full, and which Ray would tell of every few seconds, is no matter of the run's.
_OF_OUR_OWN = {"local_fs_capacity_threshold": 1.0}

#: Seconds until a head that does not answer is given up.
_TO_CONNECT_S = 10.0

#: Seconds that leaving a cluster, or ending the one that was started here, may take.
_TO_LEAVE_S = 30.0


class RayCluster:
    """A Ray cluster as the place where workers run.

    Args:
        address: host:port of the cluster's head, or "auto" for the cluster that this machine belongs to. None takes
            that of RAY_ADDRESS, or starts one of this machine alone.
        cpus: Processor cores of each worker.
        gpus: GPUs of each worker; None is one where the cluster has any and the model `wants_gpu`.
    """

    def __init__(self, address: str | None, *, cpus: float, gpus: float | None, wants_gpu: bool) -> None:
        if address is not None and "://" in address:
            raise RecipeError(f"generate.ray_address: got {address}; give host:port, or auto on a node of the cluster")
        self._address = address
        self._cpus, self._gpus, self._wants_gpu = cpus, gpus, wants_gpu
        self._connection: _Connection | None = None

    async def open(self, num_workers: int, concurrency: int) -> None:
        self._ray = ray = _ray()
        if not ray.is_initialized():
            self._connection = _Connection(self._connect, ray.shutdown)
            await self._connection.opened()
        each = self._check_room([node["Resources"] for node in ray.nodes() if node["Alive"]], num_workers)
        self._actor = ray.remote(Worker).options(
            **each, max_restarts=0, max_task_retries=0, max_concurrency=concurrency + _BESIDE
        )
        self._needs = f"{each['num_cpus']:g} CPUs and {each['num_gpus']:g} GPUs"

    def link(self, number: int) -> Link:
        return _Actor(number, self._actor.remote(), self._ray, self._needs)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _connect(self) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        logging.getLogger("ray").setLevel(logging.ERROR)
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit():
                socket.create_connection((host, int(port)), _TO_CONNECT_S).close()  # Ray itself would try for minutes
            own = {"_system_config": _OF_OUR_OWN} if address == "local" else {}
            self._ray.init(address=address, include_dashboard=False, configure_logging=False, log_to_driver=True, **own)
        except Exception as error:  # Ray's ways of failing are many
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RecipeError(
                f"generate.ray_address: no connection to the Ray cluster {address} ({line}); "
                "`ray status` on its head says whether it runs; one with a token wants RAY_AUTH_MODE=token and the "
                "head's ~/.ray/auth_token here"
            ) from None

    def _check_room(self, nodes: list[dict[str, float]], num_workers: int) -> dict[str, float]:
        """What to ask for each worker. Raises RecipeError where no node has as much."""
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "GPU")}
        gpus = float(self._wants_gpu and most["GPU"] > 0) if self._gpus is None else self._gpus
        needs = {"CPU": self._cpus, "GPU": gpus}
        room = sum(min(int(node.get(kind, 0) / need) for kind, need in needs.items() if need) for node in nodes)
        told = f"{self._cpus:g} CPUs and {gpus:g} GPUs"
        if not room:
            raise RecipeError(
                f"generate.cpus_per_worker, gpus_per_worker: each worker needs {told}, and no node of the Ray cluster "
                f"has both (the largest have {most['CPU']:g} CPUs, {most['GPU']:g} GPUs)"
            )
        if room < num_workers:
            log.warning(
                "the Ray cluster has room for %d of %d workers (%s each); the others start when there is more",
                room,
                num_workers,
                told,
            )
        return {"num_cpus": self._cpus, "num_gpus": gpus}


class Worker:
    """The actor; Ray shows this name before what it prints."""

    async def place(self) -> None:
        """Answers once the actor has its place on a node."""

    async def begin(self, orders: Orders, number: int) -> Hello | MMAlignError:
        try:
            self._outpost = await asyncio.to_thread(Outpost, orders, number)
        except Exception as error:
            return told(error)
        return self._outpost.hello

    async def learn(self, known: bytes) -> MMAlignError | None:
        try:
            self._outpost.learn(known)
        except Exception as error:
            return told(error)
        return None

    async def work(self, phase: Phase, job: Job) -> Outcome | MMAlignError:
        try:
            return await self._outpost.work(phase, job)
        except Exception as error:
            return told(error)

    async def stay(self) -> None:
        """Never ends; whoever waits for it learns of the actor's death."""
        await asyncio.Event().wait()


class _Actor(Link):
    def __init__(self, number: int, actor: Any, ray: Any, needs: str) -> None:
        self._number = number
        self._actor = actor
        self._ray = ray
        self._needs = needs
        self._gone: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    async def begin(self, orders: Orders) -> Hello:
        placing = asyncio.create_task(self._ask(self._actor.place))
        try:
            for span in itertools.chain(WAIT_S, itertools.repeat(WAIT_S[-1])):
                await asyncio.wait({placing}, timeout=span)
                if placing.done():
                    break
                log.warning("worker %d waits for %s to be free on the Ray cluster", self._number, self._needs)
        finally:
            placing.cancel()
        await placing
        hello: Hello = await self._ask(self._actor.begin, orders, self._number)
        return hello

    async def learn(self, known: bytes) -> None:
        await self._ask(self._actor.learn, known)

    async def work(self, phase: Phase, job: Job) -> Outcome:
        outcome: Outcome = await self._ask(self._actor.work, phase, job)
        return outcome

    async def lost(self) -> Lost:
        # Where an actor is out of reach for a while, calls fail and `stay` may not; it is replaced all the same.
        staying = asyncio.create_task(self._ask(self._actor.stay))
        try:
            await asyncio.wait({staying, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not self._gone.done():
                staying.result()
            return self._gone.result()
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)

    def give_up(self, how: Lost) -> None:
        if not self._gone.done():
            self._gone.set_result(how)
        self._kill()

    async def end(self) -> None:
        self._kill()

    def _kill(self) -> None:
        with suppress(Exception):  # it is dead, or its cluster is gone
            self._ray.kill(self._actor)

    async def _ask(self, call: Any, *arguments: Any) -> Any:
        errors = self._ray.exceptions
        asked: asyncio.Future[Any] | None = None
        try:
            asked = asyncio.ensure_future(call.remote(*arguments))
            await asyncio.wait({asked, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():  # it was given up
                raise self._gone.result()
            said = asked.result()
        except errors.RayTaskError as error:
            cause = str(error).strip().splitlines()[-1]
            raise MMAlignError(f"worker {self._number}: {cause}; is mmalign installed alike on all nodes?") from None
        except errors.RayError as error:
            if not self._gone.done():
                self._gone.set_result(self._loss(error))
            raise self._gone.result() from None
        finally:
            if asked is not None:
                asked.cancel()
        if isinstance(said, MMAlignError):
            raise said
        return said

    def _loss(self, error: Exception) -> Lost:
        text = " ".join(str(error).split())
        log.debug("worker %d: %s", self._number, text)
        if isinstance(error, self._ray.exceptions.ActorUnavailableError) or "node has died" in text:
            return Lost("its machine died or does not answer", by_machine=True)
        return Lost("its process ended")


class _Connection:
    """A thread that connects to Ray and leaves it again, and that nobody need wait for.

    Signals are heard meanwhile, and Ray, which would take SIGTERM for itself in the main thread, leaves it alone. The
    thread lives as long as the connection: a cluster that Ray starts here dies with the thread that started it.
    """

    def __init__(self, connect: Callable[[], None], leave: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._is_over = threading.Event()
        threading.Thread(target=self._run, args=(connect, leave), name="ray", daemon=True).start()

    async def opened(self) -> None:
        """Raises what connecting raises."""
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Leave; a connection that does not come about is waited for a while only."""
        self._is_over.set()
        await asyncio.wait({self._closed}, timeout=_TO_LEAVE_S)
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()  # it was told, or nobody wants to know any more

    def _run(self, connect: Callable[[], None], leave: Callable[[], None]) -> None:
        try:
            connect()
        except Exception as error:
            self._tell(self._opened.set_exception, error)
        else:
            self._tell(self._opened.set_result, None)
            self._is_over.wait()
        leave()
        self._tell(self._closed.set_result, None)

    def _tell(self, tell: Callable[[Any], None], what: Any) -> None:
        with suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(tell, what)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # it would upload the working directory
    try:
        import ray
    except ImportError:
        raise RecipeError(
            'engine: ray is not installed here; pip install "mmalign[ray]", or take engine: local'
        ) from None
    return ray
