"""A server that misbehaves: what is tried again and when, how many are asked at once, and where the key goes."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
from typing import Any

import pytest

from mmalign.errors import ModelError, RecipeError, ServerError
from tests.lm.asking import answer, asking, first
from tests.lm.unruly import Reply, Request, Unruly, said

KEY = "sk-very-secret-1234567890"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(Reply({"error": "busy"}, 429), id="429"),
        pytest.param(Reply({"error": "busy"}, 429, {"Retry-After": "0.02"}), id="429-after"),
        pytest.param(Reply({"error": "busy"}, 429, {"Retry-After": "no number"}), id="429-nonsense"),
        pytest.param(Reply({"error": "busy"}, 503, {"Retry-After": "nan"}), id="503-nan"),
        pytest.param(Reply({}, 503, {"Retry-After": "Mon, 01 Jan 99999 00:00:00 GMT"}), id="503-no-day"),
        pytest.param(Reply({"error": "oops"}, 500), id="500"),
        pytest.param(Reply(b"<html>bad gateway</html>", 502), id="502"),
        pytest.param(Reply({}, 408), id="408"),
        pytest.param(Reply({"choices": "a long answer that is cut"}, cut=9), id="cut-in-body"),
        pytest.param(Reply(b"", headers={"Content-Length": "999"}), id="cut-before-body"),
        pytest.param(Reply(b'{"choices": [{"mess'), id="half-json"),
        pytest.param(Reply(b"\xff\xfe not even text"), id="garbage"),
        pytest.param(Reply([1, 2]), id="list"),
        pytest.param(Reply({"choices": []}), id="no-choices"),
        pytest.param(Reply({"choices": None}), id="null-choices"),
        pytest.param(Reply({"choices": [{"finish_reason": "stop"}]}), id="no-message"),
        pytest.param(Reply({"error": {"message": "engine dead"}}), id="error-in-200"),
        pytest.param(said("half", "abort"), id="aborted"),
    ],
)
async def test_what_passes_is_tried_again(bad: Reply) -> None:
    with Unruly(first(2, bad)) as server:
        lm = asking(server)
        assert await answer(lm) == "fine"
        await lm.close()
        assert len(server.asked) == 3
        assert server.asked[0].body == server.asked[2].body


@pytest.mark.parametrize(
    "slow", [Reply(hangs=True), Reply({"choices": "x" * 200}, trickle=True)], ids=["hang", "trickle"]
)
async def test_a_request_has_its_time(slow: Reply) -> None:
    with Unruly(first(1, slow)) as server:
        lm = asking(server, timeout_s=0.5, retries=20)
        assert await answer(lm) == "fine"
        await lm.close()
        assert len(server.asked) >= 2
        assert server.hung_up >= 1


async def waits(monkeypatch: pytest.MonkeyPatch, bad: Reply, **spec: Any) -> list[float]:
    """The waits between tries that the client asks for, none of which is really waited."""
    asked: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await really(0)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", sleep)
    with Unruly(first(3, bad)) as server:
        lm = asking(server, **spec)
        assert await answer(lm) == "fine"
        await lm.close()
    return asked


async def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Reply({}, 429, {"Retry-After": "7"})
    assert all(7 <= wait <= 8 for wait in await waits(monkeypatch, bad, backoff_s=1.0, max_backoff_s=60.0))


async def test_a_date_to_wait_until(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Reply({}, 503, {"Retry-After": email.utils.formatdate(time.time() + 3600, usegmt=True)})
    asked = await waits(monkeypatch, bad, backoff_s=1.0, max_backoff_s=20.0)
    assert len(asked) == 3
    assert all(20 <= wait <= 21 for wait in asked)  # no longer than the spec allows


async def test_waits_grow_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = await waits(monkeypatch, Reply({}, 500), backoff_s=1.0, max_backoff_s=60.0)
    assert [round(wait) for wait in asked] == sorted(round(wait) for wait in asked)
    assert all(least <= wait <= least + 1 for least, wait in zip((1, 2, 4), asked, strict=True))
    assert len({wait % 1 for wait in asked}) == 3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401), r"key in \$MMALIGN_TEST_KEY"),
        (Reply({"error": {"message": f"no rights for {KEY}"}}, 403), r"key in \$MMALIGN_TEST_KEY"),
        (Reply({"error": f"no model {KEY}"}, 404), r"'known-model', the server has known-model; mend server.url"),
        (Reply({}, 307, {"Location": "http://elsewhere/"}), "redirects to http://elsewhere/; give"),
        (Reply({"error": f"bad {KEY}"}, 400), "refuses all"),
        (Reply(KEY.encode() + b"\x1b[31m" + b"\n" * 9 + b"long " * 999, 405), "HTTP 405"),
        (Reply({"error": KEY}, 500), "does not answer"),
    ],
)
async def test_the_key_shows_nowhere(
    bad: Reply, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMALIGN_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with Unruly(lambda request, number: bad) as server:
        lm = asking(server, api_key_env="MMALIGN_TEST_KEY", retries=1)
        with pytest.raises((RecipeError, ServerError), match=told) as caught:
            await answer(lm)
        await lm.close()
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    error: BaseException | None = caught.value
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 700
    while error is not None:
        assert KEY not in f"{error!s} {error!r}"
        assert error.__suppress_context__ or error.__context__ is None
        error = error.__cause__
    assert KEY not in caplog.text
    assert KEY not in repr(lm) + repr(vars(lm))


async def test_without_a_key_nothing_of_another_server_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: {KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Unruly() as server:
        lm = asking(server)
        assert await answer(lm) == "yes"
        await lm.close()
        for request in server.requests:
            assert KEY not in str(request.headers)
            assert "authorization" not in request.headers


async def test_wrong_key_without_one_named() -> None:
    with Unruly(lambda request, number: Reply({"error": "no"}, 401)) as server:
        lm = asking(server)
        with pytest.raises(RecipeError, match=r"name the key's variable with server\.api_key_env"):
            await answer(lm)
        await lm.close()


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_in_flight_than_allowed(limit: int) -> None:
    def behave(request: Request, number: int) -> Reply:
        reply = said() if number % 4 or request.is_trial else Reply({}, 429)
        reply.delay = 0.01
        return reply

    with Unruly(behave) as server:
        lm = asking(server, max_in_flight=limit, retries=8)
        assert await asyncio.gather(*(answer(lm, seed=seed) for seed in range(24))) == ["yes"] * 24
        await lm.close()
        assert server.most == limit
        assert {request.body["seed"] for request in server.asked} == set(range(24))


async def test_a_cancelled_request_is_hung_up() -> None:
    with Unruly(lambda request, number: said() if request.is_trial else Reply(hangs=True)) as server:
        lm = asking(server)
        task = asyncio.create_task(answer(lm))
        await server.until(lambda: server.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.until(lambda: server.hung_up)
        await lm.close()


async def test_closing_ends_what_waits() -> None:
    with Unruly(lambda request, number: said() if request.is_trial else Reply(hangs=True)) as server:
        lm = asking(server)
        task = asyncio.create_task(answer(lm))
        await server.until(lambda: server.asked)
        await lm.close()
        with pytest.raises(ModelError, match="closed before it could answer"):
            await task
        with pytest.raises(ModelError, match="is closed"):
            await answer(lm)
