"""What goes to a server: media without loss, settings in the words of each kind of server."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign.corrupt import apply, draw
from mmalign.errors import RecipeError
from mmalign.lm.server.media import mp4
from mmalign.lm.server.wire import generate_body
from mmalign.types import Chat, Clip, MediaRef, Message, Picture, Sampling


def noise(size: tuple[int, int] = (37, 23), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def picture(seed: int = 0) -> Picture:
    return Picture(noise(seed=seed), MediaRef("a.png"))


def clip(times: tuple[float, ...] = (0.5, 0.75, 2.0)) -> Clip:
    images = tuple(noise((16, 10), seed) for seed in range(len(times)))
    return Clip(images, times, MediaRef("a.mkv", "video"))


def about(*media: Any, begun: str | None = None) -> Chat:
    chat = Chat((Message("system", ("Be brief.",)), Message("user", (*media, "What is there?"))))
    return chat if begun is None else chat.answering(begun)


def body_of(chat: Chat, kind: Any = "vllm", clips: Any = "frames", seed: int = 5, **sampling: Any) -> dict[str, Any]:
    body = generate_body(chat, Sampling(**sampling), seed=seed, kind=kind, clips=clips)
    json.dumps(body)
    return body


def content(url: str, kind: str) -> bytes:
    head, _, data = url.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data, validate=True)


def pixels(part: dict[str, Any]) -> Any:
    assert part["type"] == "image_url"
    with Image.open(io.BytesIO(content(part["image_url"]["url"], "image/png"))) as image:
        return np.asarray(image.convert("RGB"))


def test_pictures_go_as_they_are() -> None:
    plain = picture()
    damaged = plain.damaged(plain.image.rotate(180), None)  # type: ignore[arg-type]
    system, user = body_of(about(plain, "and", damaged))["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["image_url", "text", "image_url", "text"]
    assert (pixels(user["content"][0]) == np.asarray(plain.image)).all()
    assert (pixels(user["content"][2]) == np.asarray(plain.image)[::-1, ::-1]).all()


def test_a_registered_corruption_reaches_the_server() -> None:
    plain = picture()
    noisy = apply(plain, draw("gaussian_noise", random.Random(3)))
    part = body_of(about(noisy))["messages"][1]["content"][0]
    assert (pixels(part) == np.asarray(noisy.image)).all()
    assert (pixels(part) != np.asarray(plain.image)).any()


def test_clips_go_frame_by_frame() -> None:
    shown = clip()
    user = body_of(about(shown))["messages"][1]["content"]
    assert len(user) == 4
    for part, image in zip(user, shown.images, strict=False):
        assert (pixels(part) == np.asarray(image)).all()


@pytest.mark.parametrize("times", [(0.0,), (0.5, 0.75, 2.0), (1.0, 1.0, 1.0), (0.0, 1e-9, 3600.0)])
def test_clips_go_as_a_film_without_loss(times: tuple[float, ...]) -> None:
    shown = clip(times)
    part = body_of(about(shown), clips="video")["messages"][1]["content"][0]
    assert part["type"] == "video_url"
    with av.open(io.BytesIO(content(part["video_url"]["url"], "video/mp4"))) as film:
        frames = list(film.decode(video=0))
    assert len(frames) == len(times)
    for frame, image, time in zip(frames, shown.images, times, strict=True):
        assert (frame.to_ndarray(format="rgb24") == np.asarray(image)).all()
        assert frame.time == pytest.approx(time - times[0], abs=1e-4)


def test_odd_sizes_survive_the_film() -> None:
    shown = Clip((noise((33, 7)), noise((33, 7), 1)), (0.0, 0.1), MediaRef("a", "video"))
    with av.open(io.BytesIO(mp4(shown))) as film:
        assert [(frame.width, frame.height) for frame in film.decode(video=0)] == [(33, 7), (33, 7)]


SAMPLED = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "repetition_penalty": 1.1,
    "max_new_tokens": 9,
    "stop": (".",),
}


def test_settings_go_in_the_words_of_each_kind() -> None:
    common = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    own = {
        "vllm": {
            "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.1, "stop": ["."], "include_stop_str_in_output": True,
        },
        "sglang": {"top_k": 40, "min_p": 0.0, "repetition_penalty": 1.1, "stop": ["."], "no_stop_trim": True},
        "llamacpp": {"top_k": 40, "min_p": 0.0, "repeat_penalty": 1.1, "repeat_last_n": -1},
    }  # fmt: skip
    for kind, more in own.items():
        body = body_of(about(), kind, **SAMPLED)
        body.pop("messages")
        assert body == common | more
    body = body_of(about(), "transformers", **SAMPLED)
    assert json.loads(body["generation_config"]) == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1,
    }  # fmt: skip
    plain = body_of(about(), "openai", temperature=0.7, max_new_tokens=9, stop=(".",))
    assert set(plain) == {"messages", "max_tokens", "temperature", "top_p", "seed"}


def test_what_a_server_would_add_is_switched_off() -> None:
    assert body_of(about(), "vllm", temperature=1.0).items() >= {"top_k": -1, "min_p": 0.0, "top_p": 1.0}.items()
    assert body_of(about(), "llamacpp", temperature=1.0).items() >= {"top_k": 0, "min_p": 0.0}.items()
    greedy = body_of(about(), "transformers")
    assert json.loads(greedy["generation_config"])["do_sample"] is False
    assert greedy["temperature"] == 0
    assert body_of(about(), "vllm", top_p=0.5, top_k=3)["top_p"] == 1.0  # greedy reads neither
    assert body_of(about(), "vllm", top_p=0.5, top_k=3)["top_k"] == -1


@pytest.mark.parametrize("setting", [{"top_k": 5, "temperature": 1.0}, {"repetition_penalty": 1.2}])
def test_what_openai_has_no_field_for_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"has no {next(iter(setting))}, which is .*--server.kind vllm"):
        body_of(about(), "openai", **setting)
    body_of(about(), "openai", top_k=5)  # greedy does not read it


def test_an_answer_that_was_begun() -> None:
    body = body_of(about(begun="There is"), "vllm")
    assert body["messages"][-1] == {"role": "assistant", "content": "There is"}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body_of(about(begun="There is"), "sglang")["continue_final_message"] is True
    assert "continue_final_message" not in body_of(about(), "sglang")
    for kind in ("openai", "transformers"):
        with pytest.raises(RecipeError, match=rf"server\.kind {kind}: cannot go on with an answer"):
            body_of(about(begun="There is"), kind)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_seeds_are_short_and_differ(one: int, other: int) -> None:
    seeds = [body_of(about(), "vllm", seed=seed)["seed"] for seed in (one, other)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert body_of(about(), "vllm", seed=one ^ 1)["seed"] != seeds[0]
    assert body_of(about(), "vllm", seed=one ^ 1 << 40)["seed"] != seeds[0]
