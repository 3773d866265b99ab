"""LocalLM on tiny random models of stock classes."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from mmalign.errors import ModelError, SampleError
from mmalign.lm.batch import BatchModel
from mmalign.lm.load import Loaded
from mmalign.lm.local import LocalLM
from mmalign.lm.protocol import YES_NO
from mmalign.types import Chat, Message, Sampling
from tests.lm.test_memory import ERRORS
from tests.models import ALL, SEEING, picture, shared, tiny

PROMPTS = (
    "Describe the picture.",
    "Is there a red boat in the picture? Answer yes or no.",
    "Yes",
    "What colour is the crab?",
    "There is a big blue fish at the top and a small tree on the left. What colour is the tree? Say: one two three.",
    "Say: six",
    "Describe the picture in detail, and say what colour the fish is.",
)


@asynccontextmanager
async def running(loaded: Loaded, **kwargs: Any) -> AsyncIterator[LocalLM]:
    lm = LocalLM(loaded, **kwargs)
    try:
        yield lm
    finally:
        await lm.close()


def chat(name: str, prompt: str, number: int = 0) -> Chat:
    media = (picture(number, (32 + 16 * (number % 2), 32)),) if name in SEEING else ()
    return Chat((Message("user", (*media, prompt)),))


def chats(name: str) -> list[Chat]:
    return [chat(name, prompt, number) for number, prompt in enumerate(PROMPTS)]


class Spy:
    """Notes the batch sizes that reach the model, and can be made to fail."""

    def __init__(self, lm: LocalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.fail: Any = lambda prompts: None
        for verb in ("generate", "score", "next_logits"):
            monkeypatch.setattr(lm._batches, verb, self._wrap(verb, getattr(lm._batches, verb)))

    def _wrap(self, verb: str, run: Any) -> Any:
        def wrapped(prompts: Sequence[Any], *args: Any) -> Any:
            texts = [prompt.chat.prompt for prompt in prompts]
            self.batches.append((verb, texts))
            error = self.fail(texts)
            if error is not None:
                raise error
            return run(prompts, *args)

        return wrapped

    def sizes(self, verb: str) -> list[int]:
        return [len(texts) for name, texts in self.batches if name == verb]


# Generate -------------------------------------------------------------------------------------------------------------

SETTINGS = (
    Sampling(max_new_tokens=24),
    Sampling(temperature=1.0, max_new_tokens=30),
    Sampling(temperature=0.7, top_p=0.8, max_new_tokens=12),
    Sampling(temperature=1.3, top_k=5, max_new_tokens=25),
    Sampling(repetition_penalty=1.4, max_new_tokens=20),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.2, max_new_tokens=40),
    Sampling(temperature=1.0, stop=("e",), max_new_tokens=40),
)


@pytest.mark.parametrize("name", ALL)
async def test_a_completion_does_not_depend_on_its_batch(name: str) -> None:
    requests = [(c, s, 100 + i) for i, (c, s) in enumerate(zip(chats(name), SETTINGS, strict=True))]
    answers = []
    for size, order in ((1, range(7)), (7, range(7)), (3, (4, 2, 6, 0, 5, 1, 3))):
        async with running(shared(name), max_batch_size=size) as lm:
            done = await asyncio.gather(
                *(lm.generate(requests[i][0], requests[i][1], seed=requests[i][2]) for i in order)
            )
        answers.append([done[list(order).index(i)] for i in range(7)])
    assert answers[0] == answers[1] == answers[2]
    assert len({a.text for a in answers[0]}) == 7


@pytest.mark.parametrize("name", ALL)
async def test_greedy_equals_plain_generate(name: str) -> None:
    loaded = shared(name)
    async with running(loaded) as lm:
        done = await asyncio.gather(*(lm.generate(c, Sampling(max_new_tokens=20), seed=0) for c in chats(name)))
    renderer = loaded.renderer
    for c, completion in zip(chats(name), done, strict=True):
        inputs = renderer.encode([renderer.prompt(c)], [c.media])
        out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
        expected = renderer.tokenizer.decode(out, skip_special_tokens=True)
        assert completion.text == renderer.strip_lead(expected)
        assert completion.num_tokens == len(out)
        assert completion.seed is None


async def test_sampling_follows_the_seed() -> None:
    free = Sampling(temperature=1.0, max_new_tokens=20)
    async with running(shared("llama")) as lm:
        ask = chat("llama", "Describe the picture.")
        a, b, again = await asyncio.gather(*(lm.generate(ask, free, seed=s) for s in (1, 2, 1)))
    assert a == again
    assert a.text != b.text
    assert (a.seed, b.seed) == (1, 2)


async def test_finish_tells_a_cut_from_an_end() -> None:
    loaded = tiny("llama")
    eos = loaded.processor.eos_token_id
    async with running(loaded) as lm:
        ask = chat("llama", "Describe the picture.")
        long = await lm.generate(ask, Sampling(max_new_tokens=30), seed=0)
        assert (long.finish, long.num_tokens) == ("length", 30)
        # Make the model end after its 5th token: then limits of 6 and more change nothing, 5 and less cut.
        real = loaded.model.generate

        def ending_early(**kwargs: Any) -> torch.Tensor:
            start = kwargs["input_ids"].shape[1]

            def end(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                if ids.shape[1] - start == 5:
                    scores[:, eos] = 1e9
                return scores

            kwargs["logits_processor"] = [end, *kwargs["logits_processor"]]
            out: torch.Tensor = real(**kwargs)
            return out

        loaded.model.generate = ending_early
        done = await asyncio.gather(*(lm.generate(ask, Sampling(max_new_tokens=n), seed=0) for n in (4, 5, 6, 7, 40)))
    assert [(d.finish, d.num_tokens) for d in done] == [
        ("length", 4),
        ("length", 5),
        ("stop", 6),
        ("stop", 6),
        ("stop", 6),
    ]
    assert done[1].text == done[2].text == done[4].text


async def test_a_stop_string_ends_the_answer_and_stays() -> None:
    async with running(shared("llama")) as lm:
        ask = chat("llama", "Describe the picture.")
        whole = await lm.generate(ask, Sampling(max_new_tokens=40), seed=0)
        other = await lm.generate(chat("llama", "Say: six"), Sampling(max_new_tokens=40), seed=0)
        assert "\ufffd" not in whole.text[len(whole.text) // 2 :][:3]
        for size in (1, 2, 3):
            middle = len(whole.text) // 2
            stop = whole.text[middle : middle + size]
            cut, uncut = await asyncio.gather(
                lm.generate(ask, Sampling(max_new_tokens=40, stop=("\0never", stop)), seed=0),
                lm.generate(chat("llama", "Say: six"), Sampling(max_new_tokens=40), seed=0),
            )
            assert cut.text == whole.text[: whole.text.index(stop) + len(stop)]
            assert cut.finish == "stop"
            assert cut.num_tokens < whole.num_tokens
            assert uncut == other


@pytest.mark.parametrize("name", ALL)
async def test_a_begun_answer_goes_on_where_it_was(name: str) -> None:
    # With plain letters every token boundary is kept, so going on from a beginning gives the rest of the answer.
    loaded = tiny(name)
    letters = loaded.renderer.tokenizer.convert_tokens_to_ids(list("bcdfgkpq"))

    def letters_only(module: Any, args: Any, output: Any) -> None:
        kept = output.logits[..., letters].clone()
        output.logits.fill_(-torch.inf)
        output.logits[..., letters] = kept

    loaded.model.register_forward_hook(letters_only)
    lead = loaded.renderer.lead
    async with running(loaded) as lm:
        ask = chat(name, "Describe the picture.").answering("b")
        whole = await lm.generate(ask, Sampling(max_new_tokens=8), seed=0)
        rest = await lm.generate(
            chat(name, "Describe the picture.").answering("b" + whole.text[:3]), Sampling(max_new_tokens=5), seed=0
        )
    assert len(whole.text) == 8
    assert whole.text == whole.text[:3] + rest.text
    assert lead == (" " if name == "llava" else "")


async def test_equal_greedy_requests_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(shared("llama")) as lm:
        spy = Spy(lm, monkeypatch)
        ask = chat("llama", "Yes")
        greedy, free = Sampling(max_new_tokens=5), Sampling(temperature=1.0, max_new_tokens=5)
        done = await asyncio.gather(
            *(lm.generate(ask, greedy, seed=s) for s in range(5)), *(lm.generate(ask, free, seed=s) for s in range(3))
        )
    assert spy.sizes("generate") == [4]
    assert len({d.text for d in done[:5]}) == 1


async def test_requests_asked_together_fill_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nested(lm: LocalLM, number: int) -> None:
        for turn in range(3):
            async with asyncio.TaskGroup() as group:
                for copy in range(2):
                    free = Sampling(temperature=1.0, max_new_tokens=3)
                    group.create_task(lm.generate(chat("llama", "Yes"), free, seed=100 * number + 10 * turn + copy))

    async with running(shared("llama"), max_batch_size=16) as lm:
        spy = Spy(lm, monkeypatch)
        await asyncio.gather(*(nested(lm, number) for number in range(8)))
    assert spy.sizes("generate") == [16, 16, 16]


async def test_prompts_that_do_not_fit_are_refused() -> None:
    async with running(shared("llama")) as lm:
        with pytest.raises(SampleError, match="tokens, the model takes fewer than 512"):
            await lm.generate(chat("llama", "picture " * 600), Sampling(), seed=0)
        near = await lm.generate(chat("llama", "x" * 490), Sampling(max_new_tokens=100), seed=0)
        assert near.finish == "length"
        assert near.num_tokens < 20
        with pytest.raises(SampleError, match="prompt and answer have"):
            await lm.score(chat("llama", "Yes"), ["x" * 600])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("stop", ("",)),
        ("repetition_penalty", 0),
    ],
)
def test_senseless_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .* must be "):
        Sampling(**{name: value})


async def test_a_seed_that_no_generator_takes_is_refused() -> None:
    async with running(shared("llama")) as lm:
        with pytest.raises(SampleError, match="seed -1 is not a 63-bit number"):
            await lm.generate(chat("llama", "Yes"), Sampling(), seed=-1)


async def test_pictures_for_a_text_model_are_refused() -> None:
    async with running(shared("llama")) as lm:
        with pytest.raises(SampleError, match="reads text only"):
            await lm.generate(chat("llava", "Yes"), Sampling(), seed=0)


# Score ----------------------------------------------------------------------------------------------------------------

ANSWERS = ("There is a big blue fish.", "No.", "", "Yes. There is a small tree on the left and a red boat at the top.")


def plain_logps(loaded: Loaded, c: Chat, text: str) -> list[float]:
    """One unpadded forward with all logits."""
    renderer = loaded.renderer
    prompt, answer = renderer.prompt(c), renderer.answer(c, text)
    inputs = renderer.encode([prompt + answer], [c.media])
    start = renderer.encode([prompt], [c.media])["input_ids"].shape[1]
    with torch.inference_mode():
        logps = loaded.model(**inputs).logits[0].double().log_softmax(-1)
    ids = inputs["input_ids"][0]
    return [float(logps[i - 1, ids[i]]) for i in range(start, len(ids))]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("has_media", [True, False])
async def test_score_equals_plain_forward(name: str, has_media: bool) -> None:
    loaded = tiny(name)
    loaded.model.double()  # else rounding in batches of different shapes reaches the tolerance
    asked = chats(name) if has_media else [c.without_media() for c in chats(name)]
    async with running(loaded, max_batch_size=5) as lm:
        scores = await asyncio.gather(*(lm.score(c, ANSWERS) for c in asked))
    for c, row in zip(asked, scores, strict=True):
        for text, score in zip(ANSWERS, row, strict=True):
            assert list(score.logps) == pytest.approx(plain_logps(loaded, c, text), abs=1e-5)
            assert score.tokens[-1] == loaded.renderer.tokenizer.convert_tokens_to_ids(loaded.renderer.end_of_turn)


@pytest.mark.parametrize("name", ALL)
def test_padding_side_does_not_matter(name: str) -> None:
    batches = BatchModel(shared(name))
    prompts = [batches.prompt(c) for c in chats(name)]
    answers = [batches.renderer.answer(c, "There is a fish.") for c in chats(name)]
    with torch.inference_mode():
        left, right = (batches.score(prompts, answers, side) for side in ("left", "right"))  # type: ignore[arg-type]
        alone = [batches.next_logits([prompt])[0] for prompt in prompts]
        for side in ("left", "right"):
            for one, other in zip(alone, batches.next_logits(prompts, side), strict=True):  # type: ignore[arg-type]
                torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    for a, b in zip(left, right, strict=True):
        assert a.tokens == b.tokens
        assert a.logps == pytest.approx(b.logps, abs=1e-5)


async def test_score_keeps_the_order_of_texts_and_nothing_else() -> None:
    async with running(shared("llama"), max_batch_size=2) as lm:
        ask = chat("llama", "Yes")
        forth = await lm.score(ask, ANSWERS)
        back = await lm.score(ask, ANSWERS[::-1])
        assert await lm.score(ask, []) == []
    assert [s.tokens for s in forth] == [s.tokens for s in back[::-1]]
    assert [s.total for s in forth] == pytest.approx([s.total for s in back[::-1]], abs=1e-4)


async def test_sampled_answers_score_as_they_were_generated() -> None:
    """An answer rendered by the template has the tokens that generation drew (those that decode cleanly)."""
    loaded = shared("llama")
    async with running(loaded) as lm:
        ask = chat("llama", "Describe the picture.")
        done = await lm.generate(ask, Sampling(max_new_tokens=10), seed=0)
        [score] = await lm.score(ask, [done.text])
    text = loaded.processor.decode(score.tokens, skip_special_tokens=True)
    assert text == done.text


# Choose ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
async def test_choose_reads_the_next_token(name: str) -> None:
    loaded = shared(name)
    c = chat(name, "Is there a red boat in the picture? Answer yes or no.")
    async with running(loaded) as lm:
        choice = await lm.choose(c, YES_NO)
        swapped = await lm.choose(c, YES_NO[::-1])
        among_others = (await asyncio.gather(*(lm.choose(x, YES_NO) for x in [*chats(name), c])))[-1]
    assert sum(choice.probabilities) == pytest.approx(1)
    assert swapped.probabilities == pytest.approx(choice.probabilities[::-1])
    assert swapped.mass == pytest.approx(choice.mass)
    assert among_others.probabilities == pytest.approx(choice.probabilities, abs=1e-4)
    assert 0 < choice.mass < 1


async def test_several_choices_about_one_chat_cost_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(shared("qwen3-vl")) as lm:
        spy = Spy(lm, monkeypatch)
        c = chat("qwen3-vl", "Answer yes or no.")
        await asyncio.gather(*(lm.choose(c, options) for options in (YES_NO, YES_NO[::-1], (["a"], ["b"]))))
        await lm.choose(c, (["c"], ["d"]))
    assert spy.batches == [("next_logits", ["Answer yes or no."])]


async def test_options_that_start_alike_are_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = shared("llama")
    options = (["xyz one"], ["xyz two", "xyz three"])
    c = chat("llama", "Say:")
    async with running(loaded) as lm:
        spy = Spy(lm, monkeypatch)
        choice = await lm.choose(c, options)
        assert spy.sizes("score") == [3]
        prompt = lm._batches.prompt(c)
        with torch.inference_mode():
            totals = [lm._batches.score([prompt], [form])[0].total for form in ("xyz one", "xyz two", "xyz three")]
    weights = torch.tensor(totals, dtype=torch.float64).exp()
    assert choice.probabilities[0] == pytest.approx(float(weights[0] / weights.sum()), rel=1e-3)


@pytest.mark.parametrize("options", [[["yes"]], [["yes"], []], [["yes"], [""]], ["yes", "no"]])
async def test_senseless_options_are_named(options: Any) -> None:
    async with running(shared("llama")) as lm:
        with pytest.raises(SampleError, match="option"):
            await lm.choose(chat("llama", "Yes"), options)


# Faults ---------------------------------------------------------------------------------------------------------------


async def gather(*awaitables: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


async def test_out_of_memory_splits_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(shared("llama")) as lm:
        expected = await gather(*(lm.generate(c, Sampling(max_new_tokens=5), seed=0) for c in chats("llama")))
        spy = Spy(lm, monkeypatch)
        spy.fail = lambda texts: torch.OutOfMemoryError("CUDA out of memory") if len(texts) > 2 else None
        done = await gather(*(lm.generate(c, Sampling(max_new_tokens=5), seed=0) for c in chats("llama")))
        assert done == expected
        assert max(size for size in spy.sizes("generate")[1:]) < 7
        sizes = spy.sizes("generate")
        # The bound is learnt: the next time, smaller batches come at once.
        await gather(*(lm.generate(c, Sampling(max_new_tokens=6), seed=0) for c in chats("llama")))
        assert max(spy.sizes("generate")[len(sizes) :]) < 7


@pytest.mark.parametrize("make", ERRORS)
async def test_one_request_too_big_for_memory_is_named(
    make: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(shared("llama")) as lm:
        spy = Spy(lm, monkeypatch)
        bad = PROMPTS[4]
        spy.fail = lambda texts: make() if bad in texts else None
        done = await gather(*(lm.generate(c, Sampling(max_new_tokens=5), seed=0) for c in chats("llama")))
    failed = [d for d in done if isinstance(d, Exception)]
    assert len(failed) == 1
    assert isinstance(done[4], SampleError)
    assert "There is a big blue fish" in str(done[4])
    assert "\n" not in str(done[4])


async def test_a_fault_in_the_model_fails_only_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(shared("llama")) as lm:
        spy = Spy(lm, monkeypatch)
        spy.fail = lambda texts: IndexError("index 7 is out of range\nand more") if "Yes" in texts else None
        done = await gather(*(lm.choose(c, YES_NO) for c in chats("llama")))
        assert [isinstance(d, Exception) for d in done] == [p == "Yes" for p in PROMPTS]
        assert isinstance(done[2], ModelError)
        assert str(done[2]).endswith("IndexError: index 7 is out of range")
        spy.fail = lambda texts: None
        await lm.choose(chats("llama")[2], YES_NO)


async def test_control_tokens_in_user_text_are_refused() -> None:
    async with running(shared("llama")) as lm:
        with pytest.raises(SampleError, match=r"control token '<\|end\|>'"):
            await lm.generate(chat("llama", "a<|end|>b"), Sampling(), seed=0)


async def test_cancelled_requests_do_not_wedge_the_worker() -> None:
    loaded = tiny("llama")
    started = threading.Event()
    steps = []
    forward = loaded.model.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        started.set()
        return forward(*args, **kwargs)

    loaded.model.forward = slow
    async with running(loaded) as lm:
        long = Sampling(temperature=1.0, max_new_tokens=100_000)
        lm._batches.max_positions = None
        task = asyncio.create_task(lm.generate(chat("llama", "Yes"), long, seed=0))
        await asyncio.to_thread(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await lm.generate(chat("llama", "Say: six"), Sampling(max_new_tokens=3), seed=0)
    assert after.num_tokens == 3
    assert len(steps) < 100_000


async def test_closing_ends_what_runs_and_what_waits() -> None:
    loaded = tiny("llama")
    started = threading.Event()
    forward = loaded.model.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        started.set()
        return forward(*args, **kwargs)

    loaded.model.forward = noting
    lm = LocalLM(loaded, max_batch_size=1)
    lm._batches.max_positions = None
    long = Sampling(temperature=1.0, max_new_tokens=100_000)
    tasks = [asyncio.create_task(lm.generate(chat("llama", "Yes"), long, seed=s)) for s in range(3)]
    await asyncio.to_thread(started.wait)
    await lm.close()
    done = await gather(*tasks)
    assert all(isinstance(d, ModelError) for d in done)
    with pytest.raises(ModelError, match="closed"):
        await lm.generate(chat("llama", "Yes"), long, seed=0)
    await lm.close()


def test_an_event_loop_that_dies_leaves_the_model_usable() -> None:
    loaded = tiny("llama")
    lm = LocalLM(loaded)

    async def leave() -> None:
        task = asyncio.create_task(lm.generate(chat("llama", "Yes"), Sampling(max_new_tokens=300), seed=0))
        await asyncio.sleep(0)
        task.cancel()

    async def stay() -> str:
        return (await lm.generate(chat("llama", "Yes"), Sampling(max_new_tokens=3), seed=0)).text

    asyncio.run(leave())
    first = asyncio.run(stay())
    assert asyncio.run(stay()) == first
    asyncio.run(lm.close())
    gc.collect()


async def test_the_checkpoints_own_sampling_defaults_stay_out() -> None:
    plain, biased = tiny("llama"), tiny("llama")
    biased.model.generation_config.repetition_penalty = 5.0
    biased.model.generation_config.no_repeat_ngram_size = 1
    answers = []
    for loaded in (plain, biased):
        async with running(loaded) as lm:
            answers.append(await lm.generate(chat("llama", "Yes"), Sampling(max_new_tokens=30), seed=0))
    assert answers[0] == answers[1]
    assert biased.model.generation_config.repetition_penalty == 5.0


async def test_everything_runs_in_eval_and_inference_mode() -> None:
    loaded = tiny("llama")
    loaded.model.train()
    seen = []
    forward = loaded.model.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append((torch.is_inference_mode_enabled(), loaded.model.training, threading.current_thread()))
        return forward(*args, **kwargs)

    loaded.model.forward = noting
    async with running(loaded) as lm:
        ask = chat("llama", "Yes")
        await gather(
            lm.generate(ask, Sampling(max_new_tokens=2), seed=0), lm.score(ask, ["No"]), lm.choose(ask, YES_NO)
        )
    assert {(mode, training) for mode, training, _ in seen} == {(True, False)}
    assert {thread for *_, thread in seen} == {lm._thread}
