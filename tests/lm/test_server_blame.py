"""Whose fault a failure is: the request's, and its sample goes to quarantine, or the server's, and the run stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from PIL import Image

from mmalign.errors import RecipeError, SampleError, ServerError
from mmalign.lm.server import ServerLM
from mmalign.lm.spec import ServerSpec
from mmalign.types import Chat, MediaRef, Message, Picture
from tests.lm.asking import answer, asking, first
from tests.lm.unruly import Reply, Request, Unruly, said


async def test_a_poisonous_sample_is_told_from_a_dead_server() -> None:
    def behave(request: Request, number: int) -> Reply:
        return Reply({"error": "cuda"}, 500) if "poison" in request.text else said("fine")

    with Unruly(behave) as server:
        lm = asking(server)
        bad = answer(lm, Chat((Message("user", ("poison",)),)))
        results = await asyncio.gather(bad, *(answer(lm, seed=seed) for seed in range(5)), return_exceptions=True)
        await lm.close()
    assert isinstance(results[0], SampleError)
    assert "HTTP 500" in str(results[0])
    assert results[1:] == ["fine"] * 5


@pytest.mark.parametrize("bad", [Reply({}, 500), Reply(hangs=True), Reply(b"{", cut=1)], ids=["500", "hang", "cut"])
async def test_a_server_that_dies_stops_the_run(bad: Reply) -> None:
    with Unruly() as server:
        lm = asking(server, retries=1)
        assert await answer(lm) == "yes"
        lm._client._spec = replace(lm._client._spec, timeout_s=0.2)  # healthy answers have all the time they need
        server.behave = lambda request, number: bad
        with pytest.raises(ServerError, match=r"does not answer .* run the same command again to go on"):
            await answer(lm)
        await lm.close()


async def test_a_server_that_is_away_and_back_costs_no_sample() -> None:
    """The tries are spent while it is away; the request is not blamed, but asked again."""
    with Unruly(first(4, Reply({}, 503))) as server:
        lm = asking(server)
        assert await answer(lm) == "fine"
        await lm.close()
        assert len(server.asked) == 5


async def test_a_server_that_is_too_busy_stops_the_run() -> None:
    for well in (0, 1):
        with Unruly(
            lambda request, number, well=well: said() if request.is_trial and well else Reply({}, 429)
        ) as server:
            lm = asking(server, retries=1)
            with pytest.raises(ServerError, match=r"lower server\.max_in_flight"):
                await answer(lm)
            await lm.close()


async def test_nobody_there() -> None:
    with Unruly() as server:
        url = server.url
    lm = ServerLM(ServerSpec(url=url, retries=1, backoff_s=0.01), model="m")
    with pytest.raises(ServerError, match=f"{url}: does not answer .no connection"):
        await answer(lm)
    await lm.close()


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_one_request_is_refused_for(status: int) -> None:
    told = {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": status}}
    with Unruly(first(1, Reply(told, status))) as server:
        lm = asking(server)
        with pytest.raises(SampleError, match=rf"HTTP {status}: .*maximum context length"):
            await answer(lm)
        assert len(server.asked) == 1  # not tried again
        assert await answer(lm) == "fine"
        await lm.close()


@pytest.mark.parametrize("status", [401, 403, 404, 302])
async def test_what_a_firewall_refuses_one_request_for(status: int) -> None:
    told = Reply({"message": "blocked"}, status, headers={"Location": "/sorry"})
    with Unruly(lambda request, number: told if "poison" in request.text else said("fine")) as server:
        lm = asking(server)
        with pytest.raises(SampleError, match=rf"refuses this request and takes others: HTTP {status}: "):
            await answer(lm, Chat((Message("user", ("poison",)),)))
        assert await answer(lm) == "fine"
        await lm.close()


async def test_bodies_are_packed_when_there_is_a_place_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests that wait must not hold a hundred packed pictures."""
    packed: list[str] = []

    def pack(chat: Chat, *more: object, **settings: object) -> dict[str, object]:
        packed.append(chat.messages[-1].text)
        return {"messages": [{"role": "user", "content": packed[-1]}]}

    monkeypatch.setattr("mmalign.lm.server.model.generate_body", pack)
    with Unruly(lambda request, number: said() if request.is_trial else Reply(hangs=True)) as server:
        lm = asking(server, max_in_flight=2)
        waiting = [asyncio.create_task(answer(lm, seed=seed)) for seed in range(12)]
        await server.until(lambda: len(server.asked) == 2)
        assert packed.count("Hello") == 2
        await lm.close()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_every_request_is_refused_for() -> None:
    told = Reply({"detail": "Unexpected fields in the request"}, 422)
    with Unruly(lambda request, number: told) as server:
        lm = asking(server)
        with pytest.raises(RecipeError, match="refuses all generate requests: HTTP 422: Unexpected fields"):
            await answer(lm)
        await lm.close()
        assert server.asked == []  # found out before any sample


async def test_a_server_without_eyes() -> None:
    def behave(request: Request, number: int) -> Reply:
        return Reply({"message": "no multimodal model"}, 400) if "image_url" in request.text else said()

    chat = Chat((Message("user", (Picture(Image.new("RGB", (9, 9)), MediaRef("a.png")), "What?")),))
    with Unruly(behave) as server:
        lm = asking(server)
        assert await answer(lm) == "yes"
        with pytest.raises(RecipeError, match="refuses all generate requests with pictures: HTTP 400: no multimodal"):
            await answer(lm, chat)
        await lm.close()
        assert len(server.asked) == 1  # found out before the picture was sent


async def test_a_server_that_comes_back_too_late_blames_nobody() -> None:
    """Away for two tries of the request and two of the trial, then back: the request was asked at a bad time."""
    with Unruly(lambda request, number: Reply({}, 503) if 1 < len(server.requests) <= 5 else said()) as server:
        lm = asking(server, retries=1)
        with pytest.raises(ServerError, match="does not answer"):
            await answer(lm)
        await lm.close()


async def test_a_server_that_dies_again_blames_nobody() -> None:
    """Two trials are answered, before all and after the tries; then the last try fails, and so does the trial after."""

    def behave(request: Request, number: int) -> Reply:
        num_trials = sum(asked.is_trial for asked in server.requests)
        return said() if request.is_trial and num_trials <= 2 else Reply({}, 500)

    with Unruly(behave) as server:
        lm = asking(server, retries=1)
        with pytest.raises(ServerError, match="does not answer"):
            await answer(lm)
        await lm.close()
        assert len(server.asked) == 3


async def test_a_server_that_refuses_everybody_from_now_on() -> None:
    with Unruly() as server:
        lm = asking(server)
        assert await answer(lm) == "yes"
        server.behave = lambda request, number: Reply({"message": "the model was unloaded"}, 400)
        with pytest.raises(RecipeError, match="refuses all generate requests: HTTP 400: the model was unloaded"):
            await answer(lm)
        await lm.close()


async def test_a_request_that_breaks_the_server_once_too_often() -> None:
    """A request that is refused when it is tried the last time is refused, not failed at."""

    def behave(request: Request, number: int) -> Reply:
        return said() if request.is_trial else Reply({"message": "too long"}, 400 if number > 2 else 500)

    with Unruly(behave) as server:
        lm = asking(server, retries=1)
        with pytest.raises(SampleError, match="fails at this request and answers others: HTTP 400: too long"):
            await answer(lm)
        await lm.close()


async def test_a_server_that_is_busy_in_the_end() -> None:
    def behave(request: Request, number: int) -> Reply:
        return said() if request.is_trial else Reply({}, 429 if number > 2 else 500)

    with Unruly(behave) as server:
        lm = asking(server, retries=1)
        with pytest.raises(ServerError, match="has no time for us"):
            await answer(lm)
        await lm.close()
