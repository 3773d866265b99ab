"""What is made of a server's answers: whole or half, texts and their ends, choices by the likeliest first tokens."""

from __future__ import annotations

import json
import math
import random
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import RecipeError, SampleError
from mmalign.lm.protocol import YES_NO
from mmalign.lm.server import ServerLM
from mmalign.lm.server.answers import HalfAnswerError, choice_of, completion_of, read_answer, top_of
from mmalign.lm.server.wire import choose_body
from mmalign.lm.spec import ServerSpec
from mmalign.types import Chat, Message, Sampling, TokenLogps
from tests.lm.unruly import Reply, Request, Unruly, said

HELLO = Chat((Message("user", ("Hello",)),))


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        (said("One. Two. Three"), "One.", "stop"),
        (said("One. Two", "length"), "One.", "stop"),
        (said("One", "length"), "One", "length"),
        (said("One", None), "One", "stop"),
        (said(None), "", "stop"),
        (said(None, "length"), "", "length"),
        (said(""), "", "stop"),
        (said([{"text": "On"}, {"text": "e"}, {"text": None}, 7]), "One", "stop"),
        (said(17), "", "stop"),
        (said("kept", "tool_calls"), "kept", "stop"),
    ],
)
def test_texts_and_their_ends(answer: Reply, text: str, finish: str) -> None:
    completion = completion_of(read_answer(json.dumps(answer.body)), Sampling(stop=(".", "Two"), temperature=1.0), 7)
    assert (completion.text, completion.finish, completion.seed) == (text, finish, 7)
    assert completion_of(read_answer(json.dumps(answer.body)), Sampling(), 7).seed is None


@pytest.mark.parametrize(
    ("text", "finish", "told"),
    [
        (None, "tool_calls", "gave no text"),
        (None, "content_filter", "withheld its answer, or a part of it"),
        ("half of", "content_filter", "withheld its answer, or a part of it"),
    ],
)
def test_a_withheld_answer_is_the_samples_fault(text: str | None, finish: str, told: str) -> None:
    with pytest.raises(SampleError, match=rf"the server {told} \(finish_reason {finish}\)"):
        completion_of(read_answer(json.dumps(said(text, finish).body)), Sampling(), 7)


@pytest.mark.parametrize("usage", [None, [], {}, {"completion_tokens": None}, {"completion_tokens": "9"}])
def test_tokens_that_nobody_counted(usage: Any) -> None:
    body = said("One").body | {"usage": usage}
    assert completion_of(read_answer(json.dumps(body)), Sampling(), 7).num_tokens == 0


KEYS = ["choices", "message", "content", "logprobs", "top_logprobs", "token", "logprob", "usage"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(-(10**400)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_an_answer_or_half_of_one(value: Any) -> None:
    for made in (value, {"choices": [{"message": {"content": value}, "logprobs": {"content": value}}]}):
        try:
            answer = read_answer(json.dumps(made))
        except HalfAnswerError:
            continue
        with suppress(SampleError):
            completion_of(answer, Sampling(), 1)
        top = top_of(answer)
        if top:
            with suppress(SampleError):
                choice_of(top, YES_NO)


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"choices": [{"message": {}, "finish_reason": "error"}]}'])
def test_half_answers(text: str) -> None:
    with pytest.raises(HalfAnswerError):
        read_answer(text)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(SampleError, match="no valid Unicode"):
        completion_of(read_answer(json.dumps(said("a \ud83d").body)), Sampling(), 7)


def tops(shares: dict[str, float], num: int = 20) -> dict[str, Any]:
    best = sorted(shares.items(), key=lambda entry: -entry[1])[:num]
    entries = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in best]
    return {"content": [{**entries[0], "top_logprobs": entries}]}


def choice_in(shares: dict[str, float], num: int = 20, options: Any = YES_NO) -> Any:
    top = top_of(read_answer(json.dumps(said("x", logprobs=tops(shares, num)).body)))
    assert top is not None
    return choice_of(top, options)


def test_forms_add_up() -> None:
    choice = choice_in({"Yes": 0.3, " yes": 0.1, "no": 0.05, " No": 0.15, "The": 0.4})
    assert choice.probabilities == pytest.approx((0.4 / 0.6, 0.2 / 0.6))
    assert choice.mass == pytest.approx(0.6)


def test_an_option_that_is_not_reported_has_at_most_the_least_reported() -> None:
    few = choice_in({"Yes": 0.9, "a": 0.04, "b": 0.02, "No": 0.01}, num=3)
    assert few.probabilities[1] == pytest.approx(0.02 / 0.92)
    assert few.mass == pytest.approx(0.9)
    rest = choice_in({"Yes": 0.9, "a": 0.06, "b": 0.039, "No": 0.001}, num=3)
    assert rest.probabilities[1] == pytest.approx(0.001 / 0.901)


def test_two_tokens_of_one_text_add_up_and_one_told_twice_does_not() -> None:
    """A blank in front is lost where a server shows SentencePiece tokens as bare text."""
    entries = [
        {"token": token, "logprob": math.log(share)} for token, share in (("yes", 0.3), ("no", 0.4), ("yes", 0.2))
    ]
    top = top_of(
        read_answer(json.dumps(said("x", logprobs={"content": [{**entries[0], "top_logprobs": entries}]}).body))
    )
    assert top == pytest.approx({"yes": math.log(0.5), "no": math.log(0.4)})


def test_none_reported() -> None:
    with pytest.raises(SampleError, match=r"none of the options is among the 2 likeliest .*'The', 'A'.* one token"):
        choice_in({"The": 0.6, "A": 0.4})


def test_shared_forms_count_for_neither() -> None:
    choice = choice_in({"x": 0.5, "a": 0.2, "b": 0.1}, options=(("x", "a"), ("x", "b")))
    assert choice.mass == pytest.approx(0.3)


@given(st.lists(st.floats(0.001, 1), min_size=4, max_size=30), st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_choice_is_that_of_the_whole_vocabulary_or_bounds_it(
    weights: list[float], num: int, rng: random.Random
) -> None:
    names = ["yes", " Yes", "no", " NO", *(f"t{i}" for i in range(len(weights)))][: len(weights)]
    rng.shuffle(names)
    shares = {name: weight / math.fsum(weights) for name, weight in zip(names, weights, strict=True)}
    whole = [sum(p for name, p in shares.items() if name.strip().lower() == word) for word in ("yes", "no")]
    try:
        choice = choice_in(shares, num)
    except SampleError:
        return
    assert math.fsum(choice.probabilities) == pytest.approx(1)
    assert choice.mass <= sum(whole) + 1e-9
    if len(shares) <= num:
        assert choice.mass == pytest.approx(sum(whole))
        if all(whole):
            assert choice.probabilities[0] == pytest.approx(whole[0] / sum(whole))


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "a"}]},
                                      {"content": [{"top_logprobs": [{"token": "a", "logprob": None}]}]}])  # fmt: skip
async def test_a_server_without_log_probabilities(logprobs: Any) -> None:
    with Unruly(lambda request, number: said("yes", logprobs=logprobs)) as server:
        lm = ServerLM(ServerSpec(url=server.url), model="m")
        with pytest.raises(RecipeError, match=r"gives no log-probabilities .top_logprobs.*such as vLLM"):
            await lm.choose(HELLO, YES_NO)
        assert server.asked == []
        await lm.close()


async def test_choosing_asks_for_the_first_token() -> None:
    shares = {"Yes": 0.75, "no": 0.25}
    with Unruly(lambda request, number: said("Yes", logprobs=tops(shares))) as server:
        lm = ServerLM(ServerSpec(url=server.url, kind="vllm"), model="m")
        choice = await lm.choose(HELLO, YES_NO)
        await lm.close()
        assert choice.probabilities == pytest.approx((0.75, 0.25))
        assert server.asked[0].body == {"model": "m", **choose_body(HELLO, kind="vllm", clips="frames")}
        assert server.asked[0].body["max_tokens"] == 1
        assert server.asked[0].body["top_logprobs"] == 20


@pytest.mark.parametrize("kind", ["openai", "sglang", "llamacpp", "transformers"])
async def test_servers_that_cannot_score_are_not_asked(kind: Any) -> None:
    with Unruly() as server:
        lm = ServerLM(ServerSpec(url=server.url, kind=kind), model="m")
        with pytest.raises(RecipeError, match=rf"server\.kind {kind}: cannot score given answers.*with vllm"):
            await lm.score(HELLO, ["yes"])
        await lm.close()
        assert server.requests == []


def of_prompt(*ids: int) -> list[Any]:
    return [None, *({str(token): {"logprob": -token / 8, "rank": 1}} for token in ids)]


async def scored(told: Any) -> TokenLogps:
    """The score of "x" from a server that tells `told(chat, begun, closed)` of a prompt."""

    def behave(request: Request, number: int) -> Reply:
        turns = request.body["messages"]
        begun, closed = turns[-1]["role"] == "assistant", not request.body.get("continue_final_message", True)
        reply = said()
        reply.body["prompt_logprobs"] = told(turns, begun, closed)
        return reply

    with Unruly(behave) as server:
        lm = ServerLM(ServerSpec(url=server.url, kind="vllm", retries=0), model="m")
        try:
            return (await lm.score(HELLO, ["x"]))[0]
        finally:
            await lm.close()


async def test_a_score_ends_with_the_end_of_turn() -> None:
    """Behind an answer this template writes an end of turn (90) and a line break (91)."""

    def told(turns: Any, begun: bool, closed: bool) -> list[Any]:
        return of_prompt(*(5, 6, 7), *((8, 9) if begun else ()), *((90, 91) if closed else ()))

    assert await scored(told) == TokenLogps((-1.0, -1.125, -11.25), (8, 9, 90))


async def test_an_answer_that_the_template_rewrites() -> None:
    def told(turns: Any, begun: bool, closed: bool) -> list[Any]:
        return of_prompt(5, 6, 4 if "x" in str(turns) else 7, *((8,) if begun else ()), *((90,) if closed else ()))

    with pytest.raises(SampleError, match="shows a given answer otherwise than it asks for one"):
        await scored(told)


async def test_a_template_without_an_end_of_turn() -> None:
    with pytest.raises(SampleError, match="ends no answer in a way of its own"):
        await scored(lambda turns, begun, closed: of_prompt(5, 6, *((8,) if begun else ())))


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        [None],
        {"5": 1},
        [None, None],
        [None, {}],
        [None, {"5": {"logprob": -1.0}, "6": {"logprob": -2.0}}],
        [None, {"5": {"logprob": None}}],
        [None, {"5": {"logprob": True}}],
        [None, {"5": {"logprob": 0.5}}],
        [None, {"5": {"logprob": float("nan")}}],
        [None, {"five": {"logprob": -1.0}}],
        [None, {"5": -1.0}],
    ],
)
async def test_prompt_log_probabilities_of_another_form(told: Any) -> None:
    with pytest.raises(RecipeError, match=r"says nothing of the prompt's tokens .prompt_logprobs."):
        await scored(lambda turns, begun, closed: told)


@pytest.mark.parametrize("missing", ["openai", "stamina"])
def test_without_the_libraries(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RecipeError, match=r'pip install "mmalign\[server\]"'):
        ServerLM(ServerSpec(url="http://localhost/v1"), model="m")
