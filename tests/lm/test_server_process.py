"""Real server processes: `transformers serve`, and the embedded model behind vLLM's fields. Both answer as it does."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.errors import RecipeError, SampleError, ServerError
from mmalign.lm.batch import BatchModel
from mmalign.lm.choosing import choice_from_logits, first_tokens
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.opening import open_lm
from mmalign.lm.protocol import LM, YES_NO
from mmalign.lm.spec import ModelSpec, ServerSpec
from mmalign.pairs import read_pairs
from mmalign.tiny import MODEL_PATH, draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened
from mmalign.types import Chat, Media, MediaRef, Message, Picture, Sampling
from tests.lm.processes import REPO, Process, start

MODEL = str(MODEL_PATH)
LONG, SHORT = Sampling(max_new_tokens=60), Sampling(max_new_tokens=7)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    folder = tmp_path_factory.mktemp("servers")
    serve = "from transformers.cli.transformers import main; main()"
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", "{port}"]
    started = (
        start([sys.executable, "-c", serve, "serve", MODEL, *options], folder / "transformers"),
        start([sys.executable, "-m", "tests.lm.served", "{port}"], folder / "vllm"),
    )
    try:
        yield started
    finally:
        for server in started:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def transformers_serve(servers: tuple[Process, Process]) -> Process:
    servers[0].wait("/health")
    return servers[0]


@pytest.fixture(scope="module")
def vllm_like(servers: tuple[Process, Process]) -> Process:
    servers[1].wait("/v1/models")
    return servers[1]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(ModelSpec(device="cpu"))


@pytest.fixture(scope="module")
def local(loaded: Loaded) -> Iterator[LocalLM]:
    lm = LocalLM(loaded)
    yield lm
    asyncio.run(lm.close())


def at(server: Process, kind: Any, model: str = "tiny", **spec: Any) -> LM:
    settings = {"url": f"{server.root}/v1", "kind": kind, "backoff_s": 0.05, **spec}
    return open_lm(ModelSpec(name=model), batch_size=1, server=ServerSpec(**settings))


def asked(*media: Media, prompt: str = "Describe the picture in detail.") -> Chat:
    return Chat((Message("user", (*media, prompt)),))


def pictures(num: int) -> list[Picture]:
    return [Picture(draw_scene(s), MediaRef("scene.png")) for s in scenes(num, seed=11, split="dev")]


async def both(one: LM, other: LM, requests: list[tuple[Chat, Sampling]], *, is_stripped: bool = False) -> None:
    """Equal texts and ends from both, whatever is asked at the same time."""
    for lm_answers in zip(
        *[
            await asyncio.gather(*(lm.generate(chat, sampling, seed=7) for chat, sampling in requests))
            for lm in (one, other)
        ],
        strict=True,
    ):
        # transformers serve takes blanks from both ends
        assert lm_answers[0].text == (lm_answers[1].text.strip() if is_stripped else lm_answers[1].text)
        assert lm_answers[0].finish == lm_answers[1].finish
        assert lm_answers[0].text


async def test_transformers_serve_answers_as_the_model_here(transformers_serve: Process, local: LocalLM) -> None:
    lm = at(transformers_serve, "transformers", MODEL, max_in_flight=2)
    first, second = pictures(2)
    try:
        await both(
            lm,
            local,
            [
                (asked(first), LONG),
                (asked(second), Sampling(max_new_tokens=60, stop=(".",))),
                (asked(first, second, prompt="What is there?"), SHORT),
                (asked(second), Sampling(max_new_tokens=60, repetition_penalty=1.3)),
                (asked(prompt="Hello"), SHORT),
            ],
            is_stripped=True,
        )
        with pytest.raises(RecipeError, match="gives no log-probabilities"):
            await lm.choose(asked(first, prompt="Is there a star?"), YES_NO)
    finally:
        await lm.close()


async def test_transformers_serve_with_another_model(transformers_serve: Process) -> None:
    lm = at(transformers_serve, "transformers", "another/model")
    with pytest.raises(RecipeError, match="refuses all generate requests: HTTP 400: Server is pinned to"):
        await lm.generate(asked(prompt="Hello"), SHORT, seed=1)
    await lm.close()


async def test_every_setting_gives_the_same_answer(vllm_like: Process, local: LocalLM) -> None:
    lm = at(vllm_like, "vllm")
    first, second = pictures(2)
    film = opened(next(iter(clips(1, seed=3, split="dev"))), 4, "clip.mkv")
    drawn = Sampling(temperature=0.8, top_p=0.9, top_k=30, repetition_penalty=1.1, max_new_tokens=30)
    try:
        await both(
            lm,
            local,
            [
                (asked(first), LONG),
                (asked(second), drawn),
                (asked(first, second), Sampling(temperature=1.0, max_new_tokens=30, stop=(".",))),
                (asked(first).answering("There is a big"), LONG),
                (asked(*(Picture(image, MediaRef("")) for image in film.images)), SHORT),
            ],
        )
    finally:
        await lm.close()
    film_lm = at(vllm_like, "vllm", clips="video")
    await both(film_lm, local, [(asked(film, prompt="What happens?"), LONG)])
    await film_lm.close()


async def test_seeds_draw_different_answers(vllm_like: Process) -> None:
    lm = at(vllm_like, "vllm")
    [picture] = pictures(1)
    hot = Sampling(temperature=3.0, max_new_tokens=20)
    answers = await asyncio.gather(*(lm.generate(asked(picture), hot, seed=seed) for seed in (1, 1 << 40, 1)))
    await lm.close()
    assert answers[0] == answers[2]
    assert answers[0].text != answers[1].text
    assert answers[1].seed == 1 << 40


async def test_choices_are_those_of_the_model_here(vllm_like: Process, loaded: Loaded) -> None:
    lm, here = at(vllm_like, "vllm"), BatchModel(loaded)
    try:
        for picture in pictures(3):
            for question in ("Is there a star in the picture?", "Is there a cloud in the picture?"):
                prompt = here.prompt(asked(picture, prompt=question))
                tokens = first_tokens(here.renderer, prompt.text, YES_NO, prompt.lead)
                assert tokens is not None
                whole = choice_from_logits(here.next_logits([prompt])[0], tokens)
                choice = await lm.choose(prompt.chat, YES_NO)
                assert choice.probabilities == pytest.approx(whole.probabilities, abs=1e-4)
                assert choice.mass == pytest.approx(whole.mass, abs=1e-4)
        with pytest.raises(SampleError, match="none of the options is among the 20 likeliest"):
            await lm.choose(asked(pictures(1)[0], prompt="Is there a star?"), (("xylophone",), ("zebra",)))
    finally:
        await lm.close()


async def test_scores_are_those_of_the_model_here(vllm_like: Process, local: LocalLM) -> None:
    lm = at(vllm_like, "vllm")
    first, second = pictures(2)
    texts = ["There is a big red star at the top left.", "There is a kite.", "", "There is a star. There"]
    try:
        for chat in (asked(first), asked(first, second), asked(prompt="Hello"), asked(second).answering("There is")):
            given = texts if chat.messages[-1].role == "user" else [" a big kite.", " no star here."]
            here, there = await local.score(chat, given), await lm.score(chat, given)
            for one, other in zip(here, there, strict=True):
                assert one.tokens == other.tokens
                assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert await lm.score(asked(first), []) == []
    finally:
        await lm.close()


async def test_what_the_server_refuses(vllm_like: Process) -> None:
    [picture] = pictures(1)
    lm = at(vllm_like, "vllm")
    with pytest.raises(SampleError, match=r"the server refuses this request and takes others: HTTP 400: .*4096"):
        await lm.generate(asked(picture, prompt="word " * 5000), SHORT, seed=1)
    await lm.close()
    wrong = at(vllm_like, "vllm", "another/model")
    with pytest.raises(RecipeError, match="asked for model 'another/model', the server has tiny"):
        await wrong.generate(asked(picture), SHORT, seed=1)
    await wrong.close()


def most_at_once(server: Process) -> int:
    """Most requests that were in flight since this was last asked."""
    with urllib.request.urlopen(f"{server.root}/most", timeout=60) as answer:
        most: int = json.load(answer)["most"]
    return most


async def test_the_limit_holds_at_the_server(vllm_like: Process) -> None:
    await asyncio.to_thread(most_at_once, vllm_like)
    lm = at(vllm_like, "vllm", max_in_flight=3)
    await asyncio.gather(*(lm.generate(asked(prompt="Hello"), SHORT, seed=seed) for seed in range(12)))
    await lm.close()
    assert await asyncio.to_thread(most_at_once, vllm_like) == 3


def test_a_run_makes_the_pairs_of_a_run_here(vllm_like: Process, tmp_path: Path) -> None:
    """Damaged pictures and sentences that were begun included; the whole command, but for who answers."""
    server = ["--server.url", f"{vllm_like.root}/v1", "--server.kind", "vllm"]
    for name, flags in (("stic", ["--method.temperature", "0"]), ("apasi", [])):
        words = ["generate", str(REPO / f"recipes/image/{name}.yaml"), "--data.scenes", "3", *flags]
        assert main([*words, "--output", str(tmp_path / f"{name} here")]) == 0
        assert main([*words, "--output", str(tmp_path / f"{name} there"), *server]) == 0
        here, there = (read_pairs(tmp_path / f"{name} {at}/round-0/pairs.parquet") for at in ("here", "there"))
        assert here
        assert there == here


async def test_a_killed_process_stops_the_run(servers: tuple[Process, Process], vllm_like: Process) -> None:
    """Last, because it ends the server that the others ask."""
    lm = at(vllm_like, "vllm", retries=1)
    asking = [asyncio.create_task(lm.generate(asked(p), LONG, seed=1)) for p in pictures(40)]
    await asyncio.sleep(0.1)
    vllm_like.process.kill()
    vllm_like.process.wait()
    results = await asyncio.gather(*asking, return_exceptions=True)
    await lm.close()
    assert all(isinstance(result, ServerError) for result in results if isinstance(result, Exception))
    assert any(isinstance(result, ServerError) for result in results)
