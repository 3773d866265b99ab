"""Questions that begin alike share what they begin with: who is put together, and that the answers stay the same."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.lm.batch import BatchModel
from mmalign.lm.local import LocalLM
from mmalign.lm.prompt import Prompt
from mmalign.lm.render import Renderer
from mmalign.lm.stems import find_stems
from mmalign.types import Chat, Media, Message
from tests.models import READING, SEEING, WATCHING, clip, picture, tiny

QUESTIONS = ("Red?", "Is it?", "Is", "Is it? No.", "Why?")
ASKED = [*READING, *dict.fromkeys((*SEEING, *WATCHING, "gemma3", "tiny"))]
LONG = "You are shown a thing. Look at it with care, and then answer the question in one word."


def chats(name: str, questions: tuple[str, ...] = QUESTIONS) -> list[Chat]:
    """Questions about two media, or with a long beginning in common."""
    if name in READING:
        return [Chat((Message("system", (LONG,)), Message("user", (text,)))) for text in questions]
    shown: list[Media] = [clip(n) if name in WATCHING else picture(n, size=(56, 56)) for n in (1, 2)]
    return [Chat((Message("user", (medium, text)),)) for text in questions for medium in shown]


TEXT = Renderer(tiny("llama").processor)


def written(text: str) -> Prompt:
    return Prompt(Chat((Message("user", (text,)),)), text, (), len(TEXT.token_ids(text)), "")


@given(st.sets(st.text("ab ", min_size=1, max_size=12), min_size=1, max_size=8), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_every_prompt_is_under_one_stem_and_is_stem_and_rest(texts: set[str], common: int) -> None:
    prompts = [written("so " * common + text) for text in sorted(texts)]
    found = find_stems(prompts, TEXT)
    assert sorted(number for stem in found for number in stem.members) == list(range(len(prompts)))
    for stem in found:
        for number, rest in zip(stem.members, stem.rests, strict=True):
            assert stem.text + rest == prompts[number].text
        if len(stem.members) > 1:
            assert all(stem.rests)
            assert max(len(TEXT.token_ids(rest)) for rest in stem.rests) <= len(TEXT.token_ids(stem.text)) + 1
    if common == 40 and len(prompts) > 1:
        assert len(found) == 1


def test_media_that_stand_behind_different_words_are_not_shared() -> None:
    loaded = tiny("qwen3-vl")
    model = BatchModel(loaded)
    shown = picture(1, size=(56, 56))
    asked = [model.prompt(Chat((Message("user", (text, shown)),))) for text in ("Is it red?", "What is it?")]
    assert [len(stem.members) for stem in find_stems(asked, model.renderer)] == [1, 1]
    behind = [model.prompt(Chat((Message("user", (shown, text)),))) for text in ("Is it red?", "What is it?")]
    assert [len(stem.members) for stem in find_stems(behind, model.renderer)] == [2]


def test_neighbours_share_where_the_whole_group_cannot() -> None:
    first, second = "the red boat on the water is " * 3, "a big fish under the blue sky was " * 3
    prompts = [written(text) for text in (first + "here", second + "here", first + "there", second + "there")]
    assert sorted(stem.members for stem in find_stems(prompts, TEXT)) == [(0, 2), (1, 3)] or sorted(
        sorted(stem.members) for stem in find_stems(prompts, TEXT)
    ) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ASKED)
@torch.inference_mode()
def test_questions_about_one_thing_get_the_answers_of_each(
    name: str, kernel: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny(name)
    loaded.model.set_attn_implementation(kernel)
    model = BatchModel(loaded)
    prompts = [model.prompt(chat) for chat in chats(name)]
    alone = [model.next_logits([prompt])[0] for prompt in prompts]
    rows: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for _ in range(2):
        for found, expected in zip(model.next_logits(prompts), alone, strict=True):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    num_media = 1 if name in READING else 2
    assert rows == [len(prompts), num_media, num_media], "the first time plain rows are computed, too"
    assert not caplog.records


@torch.inference_mode()
def test_a_model_that_cannot_share_answers_in_plain_rows(caplog: pytest.LogCaptureFixture) -> None:
    model = BatchModel(tiny("llama"))
    prompts = [model.prompt(chat) for chat in chats("llama")]
    alone = [model.next_logits([prompt])[0] for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.lm.prefix.Branches.visible", lambda *_: torch.ones(1, 1, 1, 1, dtype=torch.bool))
        for _ in range(2):
            for found, expected in zip(model.next_logits(prompts), alone, strict=True):
                torch.testing.assert_close(found, expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "what prompts begin with is computed for each of them: with the prompt shared" in record.getMessage()


async def test_choices_about_one_picture_run_its_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.lm.batch.CHOICE_SLACK", 0.0)  # no choice is made again from exact logits
    loaded = tiny("qwen3-vl")
    async with LocalLM(loaded) as lm:
        asked = chats("qwen3-vl", ("Is it?", "Red?", "Why?"))
        options = [("yes",), ("no",)]

        async def chosen(asked: list[Chat]) -> list[float]:
            found = await asyncio.gather(*(lm.choose(chat, options) for chat in asked))
            return [choice.probabilities[0] for choice in found]

        patches: list[int] = []
        loaded.model.model.visual.register_forward_pre_hook(
            lambda module, args, kwargs: patches.append(len([*args, *kwargs.values()][0])), with_kwargs=True
        )
        await chosen(asked[:1])  # one picture
        await chosen(asked[2::2])  # how it is, and how it would be: the road is tried
        await chosen(asked[1::2])
    one = patches[0]
    assert patches == [one, one, 2 * one, one, one]  # the first choice is measured
