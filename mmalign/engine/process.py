"""The program of a worker process (`processes`): follows its orders, answers requests, and ends with its driver."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import threading
from typing import Any

from mmalign.engine.outpost import Outpost, told
from mmalign.engine.processes import STOPPING, frame, read_frame


def main(descriptor: int, number: int) -> None:
    """Work until the driver is gone. `descriptor`: the socket to the driver; `number`: which worker this is."""
    for name in STOPPING:
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.set_inheritable(descriptor, False)
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # A thread, as loading a model or a method's own computing may keep the event loop busy for minutes.
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    faulthandler.enable()  # where in Python it was when a library crashed is worth a look
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(_serve(socket.socket(fileno=descriptor), number))


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


async def _serve(connection: socket.socket, number: int) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    first, orders = await read_frame(reader)
    try:
        outpost = Outpost(orders, number)
    except Exception as error:
        writer.write(frame(first, told(error)))
        await writer.drain()
        await asyncio.Event().wait()  # the driver ends this process
        return

    async def answer(key: int, request: Any) -> None:
        value: Any = None
        try:
            if isinstance(request, bytes):
                outpost.learn(request)
            else:
                value = await outpost.work(*request)
        except Exception as error:
            value = told(error)
        writer.write(frame(key, value))
        await writer.drain()

    writer.write(frame(first, outpost.hello))
    running: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(answer(*await read_frame(reader)))
        running.add(task)
        task.add_done_callback(running.discard)
