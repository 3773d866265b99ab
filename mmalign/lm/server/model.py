"""A served model behind the three verbs: whose fault a failure is, and what it means for the run.

A server that is gone or busy is not a sample's fault, and a picture that the server cannot take is not the server's.
So that each is told from the other, a request that fails is compared with a trial: a small request of the same form.
Where the trial fails too, the run stops and can be gone on with; where it is answered, the sample goes to quarantine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from mmalign.errors import ModelError, RecipeError, SampleError, ServerError
from mmalign.lm.asking import check_options, check_seed
from mmalign.lm.protocol import Option
from mmalign.lm.server.answers import choice_of, completion_of, top_of
from mmalign.lm.server.client import Client, RefusedError, UnansweredError
from mmalign.lm.server.scoring import PromptTokens, answer_tokens, num_closing, prompt_tokens
from mmalign.lm.server.wire import Body, answered, choose_body, generate_body, is_begun, score_body, trial_chat
from mmalign.lm.spec import ServerSpec
from mmalign.types import Chat, Choice, Clip, Completion, Message, Sampling, TokenLogps

T = TypeVar("T")
#: The request about a chat, or about the small one of its trial.
_MakeBody = Callable[[Chat], Body]

#: How often the trial that decides whether the server is at fault is tried again.
_TRIAL_RETRIES = 1


class ServerLM:
    """A model that an OpenAI-compatible server answers for.

    The first request of each form (verb, kinds of media, an answer begun or not) follows a trial of it, so that a
    server that is not there, knows no such model or takes no pictures stops the run before any sample is looked at.
    Equal requests carry equal seeds; whether they get equal answers is for the server to say.

    Args:
        spec: the server; its `url` must be set.
        model: the name that the server knows the model by.

    Raises RecipeError where the libraries are missing or the key's variable is not set. The verbs raise SampleError
    for a request that the server cannot take while it takes others, RecipeError for what it can never do, and
    ServerError when it does not answer, each of which the engine tells apart.
    """

    def __init__(self, spec: ServerSpec, *, model: str) -> None:
        self.name = f"server:{model}"
        self._kind, self._clips = spec.kind, spec.clips
        self._client = Client(spec, model)
        self._tried: set[object] = set()
        self._trials: dict[object, asyncio.Lock] = {}
        self._asked: set[asyncio.Task[Any]] = set()
        self._learning = asyncio.Lock()
        self._num_closing: int | None = None
        self._closed = False

    async def generate(self, chat: Chat, sampling: Sampling, *, seed: int) -> Completion:
        """One answer; `num_tokens` as the server counts them."""
        check_seed(seed)

        def body(chat: Chat) -> Body:
            return generate_body(chat, sampling, seed=seed, kind=self._kind, clips=self._clips)

        async def answer() -> Completion:
            return completion_of(await self._answer("generate", chat, body), sampling, seed)

        return await self._run(answer())

    async def choose(self, chat: Chat, options: Sequence[Option]) -> Choice:
        """Probabilities of the options among the likeliest first tokens of the answer (`answers.choice_of`).

        Raises RecipeError when the server gives no log-probabilities.
        """
        check_options(options)

        def body(chat: Chat) -> Body:
            return choose_body(chat, kind=self._kind, clips=self._clips)

        async def choice() -> Choice:
            return choice_of(self._top(await self._answer("choose", chat, body)), options)

        return await self._run(choice())

    async def score(self, chat: Chat, texts: Sequence[str]) -> list[TokenLogps]:
        """Log-probabilities of each text as the whole answer, end of turn included (`scoring`).

        Raises RecipeError for servers other than vLLM: the protocol has no way to ask.
        """
        if self._kind != "vllm":
            raise RecipeError(
                f"server.kind {self._kind}: cannot score given answers, which this method or judge asks for; serve the "
                "model with vllm, or take out the server section and load it here"
            )
        if not texts:
            return []

        async def told(chat: Chat, *, closed: bool = False) -> PromptTokens:
            def body(chat: Chat) -> Body:
                return score_body(chat, closed=closed and is_begun(chat), clips=self._clips)

            return self._told(await self._answer("score", chat, body))

        async def scores() -> list[TokenLogps]:
            async with self._learning:
                if self._num_closing is None:
                    said = Chat((Message("user", ("Say yes.",)), Message("assistant", ("Y",))))
                    self._num_closing = num_closing(await told(said), await told(said, closed=True))
            closing = self._num_closing
            prompt, *wholes = await asyncio.gather(
                told(chat), *(told(answered(chat, text), closed=True) for text in texts)
            )
            return [answer_tokens(prompt, whole, closing) for whole in wholes]

        return await self._run(scores())

    async def close(self) -> None:
        """Close the connections; requests that still wait fail with ModelError."""
        self._closed = True
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, verb: Coroutine[Any, Any, T]) -> T:
        """A verb in a task of its own, which `close` can end."""
        if self._closed:
            verb.close()
            raise ModelError(f"model {self.name!r} is closed")
        task = asyncio.create_task(verb)
        self._asked.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._has_ended() and not _is_cancelled():
                raise ModelError(f"model {self.name!r} was closed before it could answer") from None
            raise
        finally:
            self._asked.discard(task)

    def _has_ended(self) -> bool:
        return self._closed

    async def _answer(self, verb: str, chat: Chat, body: _MakeBody) -> Body:
        """The answer to a request, or the error that says whose fault it is that there is none."""
        await self._try_once(verb, chat, body)
        request = partial(body, chat)
        try:
            return await self._client.ask(request)
        except RefusedError as refused:
            await self._trial(verb, chat, body)
            raise SampleError(f"the server refuses this request and takes others: {refused}") from None
        except UnansweredError:
            pass
        # The server may have been away and come back: only a failure between two answered trials is the request's own.
        await self._trial(verb, chat, body)
        try:
            return await self._client.ask(request, retries=0)
        except RefusedError as refused:
            reason = str(refused)
        except UnansweredError as failure:
            reason = str(failure)
            if failure.busy:
                raise self._gone(failure) from None
        await self._trial(verb, chat, body)
        raise SampleError(f"the server fails at this request and answers others: {reason}")

    async def _try_once(self, verb: str, chat: Chat, body: _MakeBody) -> None:
        """The trial of a form of request, before the first of it."""
        kinds = frozenset("clip" if isinstance(media, Clip) else "picture" for media in chat.media)
        form = (verb, kinds, is_begun(chat))
        async with self._trials.setdefault(form, asyncio.Lock()):
            if form not in self._tried:
                await self._trial(verb, chat, body, retries=None)
                self._tried.add(form)

    async def _trial(self, verb: str, chat: Chat, body: _MakeBody, *, retries: int | None = _TRIAL_RETRIES) -> None:
        """Ask what no server that can do this refuses. Raises RecipeError or ServerError; then nobody is served."""
        try:
            answer = await self._client.ask(lambda: body(trial_chat(chat)) | {"max_tokens": 1}, retries=retries)
        except UnansweredError as failure:
            raise self._gone(failure) from None
        except RefusedError as refused:
            kinds = sorted({"videos" if isinstance(media, Clip) else "pictures" for media in chat.media})
            what = f"{verb} requests" + (f" with {' and '.join(kinds)}" if kinds else "")
            meant = RecipeError(f"server.url {self._client.url}: refuses all {what}: {refused}")
            raise refused.remedy or meant from None
        if verb == "choose":
            self._top(answer)
        elif verb == "score":
            self._told(answer)

    def _top(self, answer: Body) -> dict[str, float]:
        top = top_of(answer)
        if top is None:
            raise RecipeError(
                f"server.url {self._client.url}: gives no log-probabilities (top_logprobs), which judging by yes and "
                "no needs; ask a server that does, such as vLLM, or load the model here"
            )
        return top

    def _told(self, answer: Body) -> PromptTokens:
        told = prompt_tokens(answer)
        if told is None:
            raise RecipeError(
                f"server.url {self._client.url}: says nothing of the prompt's tokens (prompt_logprobs), which scoring "
                "needs; ask a vLLM server, or load the model here"
            )
        return told

    def _gone(self, failure: UnansweredError) -> ServerError:
        what = "has no time for us" if failure.busy else "does not answer"
        hint = "lower server.max_in_flight" if failure.busy else "see to the server"
        return ServerError(
            f"server.url {self._client.url}: {what} ({failure}); what is done is kept: {hint} "
            "and run the same command again to go on"
        )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
