"""A model that answers from a table or a function: for tests, dry runs and learning how a method behaves.

It keeps the promises of a real one: equal chat, sampling and seed give equal answers, in whatever order they are asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from mmalign.errors import ModelError, SampleError
from mmalign.lm.asking import check_options, check_seed
from mmalign.lm.protocol import Option
from mmalign.types import Chat, Choice, Completion, Sampling, TokenLogps

#: Prompt (text of the last user turn) to its answer, or to several to draw from; "*" stands for any other prompt.
AnswerTable = Mapping[str, str | Sequence[str]]
AnswerFunction = Callable[[Chat, Sampling, int], str]

#: Chats hold opened media; a model that is asked a million times must not keep them all.
MAX_ASKED = 100


class ScriptedLM:
    """An LM without a model.

    Args:
        answer: a function of (chat, sampling, seed), or a table. Of several answers in a table a greedy call gets the
            first, a sampled one draws by its seed.
        choose: function of (chat, options) that gives each option's probability; they may sum to less than 1, the sum
            is the `mass`. By default numbers made from a hash of chat and options.
        score: function of (chat, text) that gives the log-probability of each word and of the end of turn. By default
            made from a hash as well.
        fail: function of (verb, chat); an exception that it returns is raised in place of an answer.

    Attributes:
        calls: how often each verb was called, failures included.
        asked: the first `MAX_ASKED` (verb, chat) in order.
    """

    def __init__(
        self,
        answer: AnswerFunction | AnswerTable,
        *,
        choose: Callable[[Chat, Sequence[Option]], Sequence[float]] | None = None,
        score: Callable[[Chat, str], Sequence[float]] | None = None,
        fail: Callable[[str, Chat], Exception | None] | None = None,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self.calls: Counter[str] = Counter()
        self.asked: list[tuple[str, Chat]] = []
        self._answer: AnswerFunction = answer if callable(answer) else _from_table(answer)
        self._choose, self._score, self._fail = choose, score, fail
        self._closed = False

    async def generate(self, chat: Chat, sampling: Sampling, *, seed: int) -> Completion:
        """The scripted answer; words count as tokens, and limit and stop strings hold."""
        check_seed(seed)
        await self._asked("generate", chat)
        text = self._answer(chat, sampling, seed)
        cuts = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
        words = text[: min(cuts, default=len(text))].split(" ")
        is_cut = len(words) > sampling.max_new_tokens
        kept = words[: sampling.max_new_tokens]
        drawn_by = seed if sampling.temperature > 0 else None
        return Completion(" ".join(kept), len(kept), "length" if is_cut else "stop", drawn_by)

    async def score(self, chat: Chat, texts: Sequence[str]) -> list[TokenLogps]:
        await self._asked("score", chat)
        return [self._logps(chat, text) for text in texts]

    async def choose(self, chat: Chat, options: Sequence[Option]) -> Choice:
        check_options(options)
        await self._asked("choose", chat)
        if self._choose is None:
            rng = random.Random(_hash("choose", chat, [list(option) for option in options]))
            weights = [rng.random() + 1e-3 for _ in options]
            shares: Sequence[float] = [weight / sum(weights) for weight in weights]
        else:
            shares = self._choose(chat, options)
        mass = sum(shares)
        if len(shares) != len(options) or min(shares) < 0 or not 0 < mass <= 1 + 1e-9:
            raise SampleError(f"the script gives {list(shares)} for {len(options)} options: they are no probabilities")
        return Choice(tuple(share / mass for share in shares), min(mass, 1.0))

    async def close(self) -> None:
        self._closed = True

    async def _asked(self, verb: str, chat: Chat) -> None:
        if self._closed:
            raise ModelError(f"model {self.name!r} is closed")
        self.calls[verb] += 1
        if len(self.asked) < MAX_ASKED:
            self.asked.append((verb, chat))
        await asyncio.sleep(0)  # a real model lets others run, too
        failure = self._fail(verb, chat) if self._fail is not None else None
        if failure is not None:
            raise failure

    def _logps(self, chat: Chat, text: str) -> TokenLogps:
        words = [*text.split(), "<end>"]
        if self._score is None:
            rng = random.Random(_hash("score", chat, text))
            logps: Sequence[float] = [-rng.expovariate(1.0) for _ in words]
        else:
            logps = self._score(chat, text)
        return TokenLogps(tuple(logps), tuple(range(len(logps))))


def _from_table(table: AnswerTable) -> AnswerFunction:
    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        found = table.get(chat.prompt, table.get("*"))
        if found is None:
            raise SampleError(f"the script has no answer to {chat.prompt!r}: add it, or '*' for any other prompt")
        if isinstance(found, str):
            return found
        return found[0] if sampling.temperature == 0 else random.Random(seed).choice(found)

    return answer


def _hash(verb: str, chat: Chat, more: object) -> int:
    text = json.dumps([verb, chat.to_rows(), more], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
