"""A server on this machine that speaks the OpenAI protocol and does to each request what a test tells it to.

Without a model: an answer is made of words drawn by a hash of all that was asked, so equal requests get equal answers.
`python tests/lm/unruly.py PORT [--die-after N]` runs it as a process of its own, which kills itself after N answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = (
    "red blue green small big round square star moon ball key kite cat dog tree house left right above below".split()
)


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """All text of the messages."""
        return json.dumps(self.body.get("messages", ""))

    @property
    def is_trial(self) -> bool:
        return "Say yes." in self.text


@dataclass
class Reply:
    """What goes back, and how: cut after so many bytes of the body, a byte each 20 ms (`trickle`), or never."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    trickle: bool = False
    hangs: bool = False


def said(text: Any = "yes", finish: str | None = "stop", **more: Any) -> Reply:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    usage = {"prompt_tokens": 3, "completion_tokens": len(str(text).split()), "total_tokens": 9}
    return Reply({"id": "1", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})


def hashed(request: Request) -> Reply:
    """An answer that hangs on every byte that was asked."""
    digest = hashlib.sha256(json.dumps(request.body, sort_keys=True).encode()).digest()
    return said(" ".join(WORDS[byte % len(WORDS)] for byte in digest[:12]) + ".")


class Unruly:
    """The server in a thread of its own; `with` it.

    Attributes:
        requests: Those to `chat/completions` that were read whole, in order, trials included.
        asked: The same without trials.
        most: Most requests that were in flight at once.
        hung_up: Requests whose client went away before the answer.
    """

    def __init__(self, behave: Callable[[Request, int], Reply] = lambda request, number: said()) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.asked: list[Request] = []
        self.most = self.hung_up = self._now = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until something can be seen here."""
        await asyncio.to_thread(self._wait, happened)

    def _wait(self, happened: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(happened, 120)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Unruly:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(120)

    def _serve(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self.connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # in which connections are really closed

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            text = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Request(first.split(" ")[1], headers, json.loads(text or b"{}"))
            await self._answer(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path.endswith("/models"):
            reply = Reply({"object": "list", "data": [{"id": "known-model", "object": "model"}]})
            await self._send(reply, writer)
            return
        self.requests.append(request)
        if not request.is_trial:
            self.asked.append(request)
        self._now += 1
        self.most = max(self.most, self._now)
        self._tell()
        gone = asyncio.ensure_future(reader.read(1))
        try:
            sent = asyncio.ensure_future(self._send(self.behave(request, len(self.asked)), writer))
            await asyncio.wait({gone, sent}, return_when=asyncio.FIRST_COMPLETED)
            if not sent.done():
                self.hung_up += 1
                self._tell()
                sent.cancel()
        finally:
            gone.cancel()
            self._now -= 1

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(reply.delay)
        if reply.hangs:
            await asyncio.sleep(3600)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {reply.status} Because", *(f"{k}: {v}" for k, v in (headers | reply.headers).items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if reply.trickle:
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.write(b"" if reply.trickle else body[: reply.cut])
        await writer.drain()


async def serve(port: int, die_after: int) -> None:
    def slowly(request: Request, number: int) -> Reply:
        if number > die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        reply = hashed(request)
        reply.delay = 0.02
        return reply

    server = await asyncio.start_server(Unruly(slowly).connected, "127.0.0.1", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[3]) if "--die-after" in sys.argv else 10**9))
