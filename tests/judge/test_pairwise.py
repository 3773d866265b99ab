from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from mmalign.judge.pairwise import LETTERS, prefers
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.types import Chat, Clip, MediaRef, Picture, Sample

CLIP = Clip((Image.new("RGB", (4, 4)),), (0.0,), MediaRef("a.mp4", "video"))


async def judged(p_first: Any, sample: Sample) -> tuple[Any, ScriptedLM]:
    def choose(chat: Chat, options: Any) -> tuple[float, float]:
        assert options == LETTERS
        p = p_first(chat.prompt)
        return p, 1 - p

    lm = ScriptedLM({}, choose=choose)
    return await prefers(sample, "What is it?", "a dog", "a cat", SampleLM(lm, sample_id="s")), lm


async def test_both_orders_are_asked_about_the_clip() -> None:
    found, lm = await judged(lambda prompt: 0.9 if "Answer A: a dog" in prompt else 0.2, Sample("s", (CLIP,)))
    assert found.value == pytest.approx(0.8)
    assert found.raw == {"first": pytest.approx(0.9), "second": pytest.approx(0.8)}
    assert [chat.prompt for _, chat in lm.asked] == [
        "Question: What is it?\nAnswer A: a dog\nAnswer B: a cat\nWhich answer is true to the video? Answer A or B.",
        "Question: What is it?\nAnswer A: a cat\nAnswer B: a dog\nWhich answer is true to the video? Answer A or B.",
    ]
    assert all(chat.media == (CLIP,) for _, chat in lm.asked)


async def test_a_judge_that_likes_the_first_place_prefers_nothing() -> None:
    found, _ = await judged(lambda prompt: 0.9, Sample("s", (CLIP,)))
    assert found.value == pytest.approx(0.1)


async def test_of_a_picture_it_speaks_as_of_one() -> None:
    picture = Picture(Image.new("RGB", (4, 4)), MediaRef("a.png"))
    _, lm = await judged(lambda prompt: 0.5, Sample("s", (picture,)))
    assert lm.asked[0][1].prompt.endswith("Which answer is true to the picture? Answer A or B.")
