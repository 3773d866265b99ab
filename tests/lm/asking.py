"""A served model that is asked in tests: few and short waits, one word to say."""

from __future__ import annotations

from typing import Any

from mmalign.lm.server import ServerLM
from mmalign.lm.spec import ServerSpec
from mmalign.types import Chat, Message, Sampling
from tests.lm.unruly import Reply, Unruly, said

HELLO = Chat((Message("user", ("Hello",)),))


def asking(server: Unruly, **spec: Any) -> ServerLM:
    settings = {"retries": 3, "backoff_s": 0.01, "max_backoff_s": 0.05, "timeout_s": 5.0, **spec}
    return ServerLM(ServerSpec(url=server.url, **settings), model="known-model")


async def answer(lm: ServerLM, chat: Chat = HELLO, seed: int = 1, **sampling: Any) -> str:
    return (await lm.generate(chat, Sampling(**sampling), seed=seed)).text


def first(num: int, bad: Reply) -> Any:
    """The first `num` requests that are no trials meet `bad`, then all is well."""
    return lambda request, number: bad if not request.is_trial and number <= num else said("fine")
