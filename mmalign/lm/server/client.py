"""Requests to a server: so many at once, each with its time, tried again while trying again can help.

Nothing is sent anywhere but to the configured address, redirects are not followed, and the key is in the header alone:
not in messages, not in exceptions, not in the run directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmalign.errors import RecipeError
from mmalign.lm.server.answers import HalfAnswerError, read_answer
from mmalign.lm.spec import ServerSpec

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

#: Statuses below 500 that say "not now".
_LATER = (408, 409, 425, 429)
#: Statuses of a wrong address, key or model, unless only one request meets them: firewalls refuse words they dislike.
_WRONG = (401, 402, 403, 404, 405)
#: Headers that requests keep. By the last one the library knows that it is to hand on the response as it is.
_HEADERS = frozenset(
    "host connection accept accept-encoding content-type content-length user-agent x-stainless-raw-response".split()
)
#: Longest message of a server that is handed on, in characters.
_MAX_MESSAGE = 300

logging.getLogger("stamina").addHandler(logging.NullHandler())  # else each retry is a line on standard error


class UnansweredError(Exception):
    """A request that was tried as often as is allowed. `wait`: seconds that the server asked for; `busy`: too many."""

    def __init__(self, reason: str, *, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class RefusedError(Exception):
    """A request that the server does not want; the message is the server's. `remedy`: what to mend if it wants none."""

    def __init__(self, reason: str, remedy: RecipeError | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Client:
    """Sends bodies to `chat/completions` of one server.

    Raises RecipeError when openai or stamina is not installed or the key's variable is not set.
    """

    def __init__(self, spec: ServerSpec, model: str) -> None:
        assert spec.url is not None
        self.url = spec.url.rstrip("/")
        self.model = model
        self._spec = spec
        self._key = _key(spec)
        self._open = _connect(spec, self.url, self._key)
        self._slots = asyncio.Semaphore(spec.max_in_flight)
        self._jitter = random.Random()  # waits only; no pair depends on it

    async def ask(self, make: Callable[[], dict[str, Any]], *, retries: int | None = None) -> dict[str, Any]:
        """The first choice of the answer to the body that `make` gives, and its usage.

        A request keeps its place among those in flight while it waits to be tried again: a busy server gets fewer.
        Bodies are made once there is a place: packed pictures are large, and requests that wait are many.

        Raises UnansweredError, RefusedError, and what `make` raises.
        """
        import stamina

        spec = self._spec
        attempts = stamina.retry_context(
            on=self._wait,
            attempts=1 + (spec.retries if retries is None else retries),
            timeout=None,
            wait_initial=min(spec.backoff_s, spec.max_backoff_s),
            wait_max=spec.max_backoff_s,
            wait_jitter=spec.backoff_s,
        )
        async with self._slots:
            body = await asyncio.to_thread(make)
            async for attempt in attempts:
                with attempt:
                    return await self._try(body)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connections."""
        await self._open.close()

    def _wait(self, error: Exception) -> bool | float:
        """Whether to try again, or after how many seconds."""
        if not isinstance(error, UnansweredError):
            return False
        if error.wait is None:
            return True
        return min(error.wait, self._spec.max_backoff_s) + self._jitter.random() * self._spec.backoff_s

    async def _try(self, body: dict[str, Any]) -> dict[str, Any]:
        from openai import APIConnectionError, APIStatusError

        completions: Any = self._open.chat.completions.with_raw_response
        known = {"messages": body["messages"], "model": self.model}
        more = {key: value for key, value in body.items() if key != "messages"}
        try:
            async with asyncio.timeout(self._spec.timeout_s):
                # In `extra_body` fields go as they are, whatever the library thinks of them.
                response = await completions.create(**known, extra_body=more)
                return read_answer(response.text)
        except TimeoutError:
            raise UnansweredError(f"no answer within {self._spec.timeout_s:g} s") from None
        except APIConnectionError as error:
            raise UnansweredError(f"no connection ({self._told(_root(error))})") from None
        except HalfAnswerError as error:
            raise UnansweredError(str(error)) from None
        except APIStatusError as error:
            fault = await self._fault(error)
        raise fault

    async def _fault(self, error: APIStatusError) -> Exception:
        status, told = error.status_code, f"HTTP {error.status_code}: {self._told(_message(error))}"
        if status >= 500 or status in _LATER:
            busy = status == 429
            return UnansweredError(f"HTTP {status}", wait=_retry_after(error.response.headers), busy=busy)
        if status < 400:
            target = self._told(error.response.headers.get("location", "elsewhere"))
            moved = RecipeError(f"server.url {self.url}: redirects to {target}; give that address if you trust it")
            return RefusedError(f"HTTP {status}: redirects to {target}", moved)
        if status in (401, 403):
            name = self._spec.api_key_env
            hint = f"is the key in ${name} right?" if name else "name the key's variable with server.api_key_env"
            return RefusedError(told, RecipeError(f"server.url {self.url}: lets nobody in ({told}); {hint}"))
        if status in _WRONG:
            wrong = RecipeError(
                f"server.url {self.url}: {told}; asked for model {self.model!r}{await self._known()}; "
                "mend server.url (it ends in /v1 for most servers) or server.model"
            )
            return RefusedError(told, wrong)
        return RefusedError(told)

    async def _known(self) -> str:
        """What the server says it has, for a message."""
        from openai import OpenAIError

        with contextlib.suppress(OpenAIError, TimeoutError, ValueError, AttributeError):
            async with asyncio.timeout(min(5.0, self._spec.timeout_s)):
                listed = await self._open.models.list()
            if names := [str(entry.id) for entry in listed.data[:5]]:
                return f", the server has {self._told(', '.join(names))}"
        return ""

    def _told(self, text: object) -> str:
        """A text of the server in one line that can be shown: short, printable and without the key."""
        line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
        line = line.replace(self._key, "***") if self._key else line
        return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 3] + "..."


def _key(spec: ServerSpec) -> str | None:
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise RecipeError(f"server.api_key_env: the variable {spec.api_key_env} holds no key; set it, or take this out")
    return key


def _connect(spec: ServerSpec, url: str, key: str | None) -> AsyncOpenAI:
    try:
        import stamina  # noqa: F401
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    except ImportError:
        raise RecipeError('server.url: asking a server needs more packages: pip install "mmalign[server]"') from None
    # Where the environment names a proxy it is used, as everywhere; never for a server on this machine.
    http = DefaultAsyncHttpxClient(
        follow_redirects=False,
        trust_env=not _is_here(url),
        timeout=None,
        event_hooks={"request": [partial(_only_ours, key)]},
    )
    return AsyncOpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=None, http_client=http)


async def _only_ours(key: str | None, request: Any) -> None:
    """Strip a request of what the library adds from OPENAI_... variables, which are meant for another server."""
    for name in set(request.headers) - _HEADERS:
        del request.headers[name]
    if key is not None:
        request.headers["Authorization"] = f"Bearer {key}"


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _root(error: BaseException) -> str:
    """What lies below an error of the library, which itself says "Connection error."."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _message(error: APIStatusError) -> str:
    body: Any = error.body
    if isinstance(body, dict):
        for key in ("message", "detail", "error"):
            if body.get(key):
                return str(body[key])
    return str(body) if body else error.response.text


def _retry_after(headers: Any) -> float | None:
    """Seconds that `Retry-After` asks to wait, given as a number or as a date; None where it says nothing readable."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        when = email.utils.parsedate_tz(told)
        if when is None:
            return None
        try:
            seconds = email.utils.mktime_tz(when) - time.time()
        except (ValueError, OverflowError):  # no such day
            return None
    return max(0.0, seconds) if seconds == seconds and seconds < float("inf") else None
