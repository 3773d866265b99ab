"""The model on this machine: many coroutines ask at once, one thread runs full batches.

The event loop only queues. The thread owns the model; when it is free it lets the loop run until nothing new is asked,
then takes the best batch of what waits (`schedule`) and runs it (`batch`). A request's result does not depend on its
batch-mates, but for last-bit differences of the logits (see `sampling`).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor

from mmalign.errors import MMAlignError, ModelError, SampleError
from mmalign.lm.asking import check_options, check_seed
from mmalign.lm.batch import BatchModel
from mmalign.lm.choosing import choice_from_logps, first_tokens
from mmalign.lm.load import Loaded
from mmalign.lm.memory import is_out_of_memory
from mmalign.lm.prompt import Prompt
from mmalign.lm.protocol import Option
from mmalign.lm.schedule import Job, is_full, next_batch
from mmalign.types import Chat, Choice, Completion, Sampling, TokenLogps

#: Passes of the event loop without a new request after which everybody is taken to have asked.
_QUIET_PASSES = 4
#: Longest that a free model waits for a busy event loop, in seconds.
_MAX_SETTLE_S = 0.05
#: Numbers in the logits that a scoring batch may hold at once.
_MAX_LOGITS = 1 << 29
#: Prompts whose next-token logits are kept, for several choices about the same chat.
_KEPT_LOGITS = 32


@dataclass(eq=False)
class _Request:
    """A call of a verb: how to turn it into jobs, and the future that its caller awaits."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    plan: Callable[[_Request], None]

    def is_wanted(self) -> bool:
        return not self.future.done()

    def resolve(self, result: Any) -> None:
        """Set the result, or the exception, from the model's thread."""

        def deliver() -> None:
            if self.future.done():
                return
            if isinstance(result, Exception):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        _call(self.loop, deliver)


class LocalLM:
    """A loaded transformers model behind the three verbs.

    Args:
        loaded: model and processor; the model must not be used elsewhere before `close`.
        max_batch_size: most rows of a batch.
        max_batch_tokens: most padded tokens of a batch, prompt and answer, media included. Halved for good where
            memory runs out: then the batch is split and run again.
    """

    def __init__(self, loaded: Loaded, max_batch_size: int = 32, max_batch_tokens: int = 65_536) -> None:
        if max_batch_size < 1 or max_batch_tokens < 1:
            raise ModelError(f"max_batch_size {max_batch_size}, max_batch_tokens {max_batch_tokens}: give at least 1")
        self.name = loaded.name
        self._batches = BatchModel(loaded)
        self._max_rows, self._max_tokens = max_batch_size, max_batch_tokens
        self._max_logits_rows = max(1, _MAX_LOGITS // self._batches.vocab_size)
        self._arrived: list[_Request] = []
        self._num_asked = 0
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._pending: list[Job] = []
        self._by_key: dict[tuple[Any, ...], Job] = {}
        self._logits: OrderedDict[tuple[Any, ...], tuple[Prompt, Tensor]] = OrderedDict()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"lm-{loaded.name}", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    # The three verbs, in the event loop ------------------------------------------------------------------------------

    async def generate(self, chat: Chat, sampling: Sampling, *, seed: int) -> Completion:
        """One answer: only the new part, decoded without control tokens.

        `num_tokens` counts the end-of-turn token. An answer is cut at the model's last position if it gets there
        first (`finish` is "length" then too). Equal requests that wait at the same time are computed once.
        """
        check_seed(seed)

        def plan(request: _Request) -> None:
            prompt = self._batches.prompt(chat)
            room = self._batches.room(prompt, sampling)
            zone = self._batches.zone(prompt.num_tokens, room)
            self._add(Job("generate", prompt, room, sampling, seed, zone=zone), request, request.resolve)

        return cast(Completion, await self._ask(plan))

    async def score(self, chat: Chat, texts: Sequence[str]) -> list[TokenLogps]:
        """Log-probabilities of each text as the whole answer (`Renderer.answer`), end of turn included."""
        if not texts:
            return []

        def plan(request: _Request) -> None:
            prompt = self._batches.prompt(chat)
            answers = [self._batches.renderer.answer(chat, text) for text in texts]
            self._add_scores(prompt, answers, request, request.resolve)

        return cast("list[TokenLogps]", await self._ask(plan))

    async def choose(self, chat: Chat, options: Sequence[Option]) -> Choice:
        """Probabilities of the options right where the answer starts.

        Where an option has no token of its own to start with, the options' full strings are scored instead, without an
        end of turn; an option that is the beginning of another then has the advantage of being shorter.
        """
        check_options(options)

        def choose(request: _Request, prompt: Prompt, logits: Tensor, tokens: Sequence[Sequence[int]]) -> None:
            try:
                request.resolve(self._batches.choice(prompt, logits, tokens))
            except Exception as error:
                request.resolve(self._blame(Job("logits", prompt), error, is_out_of_memory(error)))

        def plan(request: _Request) -> None:
            prompt = self._batches.prompt(chat)
            tokens = first_tokens(self._batches.renderer, prompt.text, options, prompt.lead)
            if tokens is not None:
                self._add_logits(prompt, request, lambda logits: choose(request, prompt, logits, tokens))
                return
            forms = [prompt.lead + form for option in options for form in option]

            def weigh(scores: list[TokenLogps]) -> None:
                rest = iter([score.total for score in scores])
                sums = [torch.tensor([next(rest) for _ in option]).logsumexp(0).item() for option in options]
                request.resolve(choice_from_logps(sums))

            self._add_scores(prompt, forms, request, weigh)

        return cast(Choice, await self._ask(plan))

    async def close(self) -> None:
        """End the thread and let go of the model. A batch that is being generated ends at its next token."""
        self._stop()
        await asyncio.to_thread(self._thread.join)
        atexit.unregister(self._stop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _ask(self, plan: Callable[[_Request], None]) -> Any:
        loop = asyncio.get_running_loop()
        request = _Request(loop, loop.create_future(), plan)
        with self._wake:
            if self._closed:
                raise ModelError(f"model {self.name!r} is closed")
            self._arrived.append(request)
            self._num_asked += 1
            self._wake.notify()
        return await request.future

    # The model's thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with torch.inference_mode():
            while self._wait():
                self._admit()
                if self._pending and not is_full(self._pending, self._max_rows):
                    self._settle()
                    self._admit()
                if self._pending:
                    self._run_next()
        error = ModelError(f"model {self.name!r} was closed before it could answer")
        for job in self._pending:
            job.finish(error)
        for request in self._arrived:
            request.resolve(error)
        del self._batches
        self._logits.clear()
        self._by_key.clear()

    def _wait(self) -> bool:
        """Until there is something to do. False when closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._arrived or self._pending)
            return not self._closed

    def _settle(self) -> None:
        """Let the event loop run until nobody asks for anything new, so that what belongs together runs together."""
        for loop in self._loops:
            quiet = threading.Event()
            if _call(loop, self._look, loop, self._num_asked, _QUIET_PASSES, quiet):
                quiet.wait(_MAX_SETTLE_S)

    def _look(self, loop: asyncio.AbstractEventLoop, num_asked: int, passes: int, quiet: threading.Event) -> None:
        """One pass of the event loop, run by the loop itself."""
        if self._num_asked != num_asked:
            passes = _QUIET_PASSES
        if passes == 0:
            quiet.set()
        else:
            loop.call_soon(self._look, loop, self._num_asked, passes - 1, quiet)

    def _admit(self) -> None:
        """Turn what has arrived into jobs."""
        with self._wake:
            arrived, self._arrived = self._arrived, []
        if arrived:
            self._loops = list({id(request.loop): request.loop for request in arrived}.values())
        for request in arrived:
            if not request.is_wanted():
                continue
            try:
                request.plan(request)
            except MMAlignError as error:
                request.resolve(error)
            except Exception as error:
                request.resolve(ModelError(f"model {self.name!r} cannot take the request: {_line(error)}"))

    def _add(self, job: Job, request: _Request, receive: Callable[[Any], None]) -> None:
        """Queue a job, or join one that gives the same result. `receive` is not called for an exception."""

        def take(result: Any) -> None:
            if isinstance(result, Exception):
                request.resolve(result)
            else:
                receive(result)

        waiting = self._by_key.get(job.key)
        if waiting is None:
            self._by_key[job.key] = waiting = job
            self._pending.append(job)
        waiting.receivers.append(take)
        waiting.is_wanted.append(request.is_wanted)

    def _add_scores(
        self, prompt: Prompt, answers: Sequence[str], request: _Request, receive: Callable[[list[TokenLogps]], None]
    ) -> None:
        found: dict[int, TokenLogps] = {}
        jobs = []
        for answer in answers:
            length = self._batches.renderer.answer_length(prompt.text, answer)
            room = self._batches.max_positions
            if room is not None and prompt.num_tokens + length > room:
                raise SampleError(f"prompt and answer have {prompt.num_tokens + length} tokens, the model takes {room}")
            zone = self._batches.zone(prompt.num_tokens + length)
            jobs.append(Job("score", prompt, length, answer=answer, zone=zone))

        def collect(number: int, score: TokenLogps) -> None:
            found[number] = score
            if len(found) == len(jobs):
                receive([found[i] for i in range(len(jobs))])

        for number, job in enumerate(jobs):
            self._add(job, request, partial(collect, number))

    def _add_logits(self, prompt: Prompt, request: _Request, receive: Callable[[Tensor], None]) -> None:
        kept = self._logits.get(prompt.key)
        if kept is not None:
            self._logits.move_to_end(prompt.key)
            receive(kept[1])
            return
        self._add(Job("logits", prompt, zone=self._batches.zone(prompt.num_tokens)), request, receive)

    def _run_next(self) -> None:
        for job in [job for job in self._pending if not job.wanted]:
            self._forget(job)
        if not self._pending:
            return
        batch = next_batch(self._pending, self._max_rows, self._max_tokens, self._max_logits_rows)
        for job in batch:
            self._forget(job)
        self._run(batch)

    def _forget(self, job: Job) -> None:
        self._pending.remove(job)
        del self._by_key[job.key]

    def _run(self, batch: list[Job]) -> None:
        """Run jobs together; when that fails, in halves, so that only the jobs at fault fail."""
        failure: Exception
        try:
            results = self._compute(batch)
        except Exception as error:
            failure = error.with_traceback(None)
        else:
            for job, result in zip(batch, results, strict=True):
                job.finish(result)
            return
        is_memory = is_out_of_memory(failure)
        if is_memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1 and not self._closed:
            if is_memory:
                self._max_tokens = max(1, min(self._max_tokens, len(batch) * max(j.num_tokens for j in batch)) // 2)
            middle = len(batch) // 2
            self._run(batch[:middle])
            self._run(batch[middle:])
            return
        for job in batch:
            job.finish(self._blame(job, failure, is_memory))

    def _blame(self, job: Job, failure: Exception, is_memory: bool) -> Exception:
        if isinstance(failure, MMAlignError):
            return failure
        prompt = job.prompt
        what = f"{job.verb} ({job.num_tokens} tokens, {len(prompt.media)} media) for {prompt.chat.prompt[:60]!r}"
        if is_memory:
            return SampleError(f"memory ran out for one request alone: {what}")
        return ModelError(f"model {self.name!r} failed at {what}: {_line(failure)}")

    def _compute(self, batch: list[Job]) -> Sequence[Any]:
        prompts = [job.prompt for job in batch]
        if batch[0].verb == "score":
            return self._batches.score(prompts, [job.answer for job in batch])
        if batch[0].verb == "logits":
            rows = self._batches.next_logits(prompts)
            for prompt, logits in zip(prompts, rows, strict=True):
                self._logits[prompt.key] = (prompt, logits.clone())
                if len(self._logits) > _KEPT_LOGITS:
                    self._logits.popitem(last=False)
            return rows
        completions = self._batches.generate(
            prompts,
            [job.sampling for job in batch],
            [job.seed for job in batch],
            lambda row: self._closed or not batch[row].wanted,
        )
        if self._closed:
            raise ModelError(f"model {self.name!r} was closed before it could answer")
        return completions

    def _stop(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify_all()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> bool:
    """Have the loop call a function soon. False when the loop is closed, so that nobody is left to tell."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


def _line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
