"""Clips through every family that has a way of its own for them, and through models that have none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from mmalign.errors import SampleError
from mmalign.lm.features import num_features, placeholder_ids
from mmalign.lm.load import Loaded
from mmalign.lm.local import LocalLM
from mmalign.lm.processing import TEXT_ONLY
from mmalign.lm.protocol import YES_NO
from mmalign.lm.render import Renderer
from mmalign.types import Chat, Clip, Media, Message, Sampling
from tests.models import MARKS_TEMPLATE, STRING_TEMPLATE, WATCHING, clip, picture, shared, tiny

#: Every family, the embedded model, and one that sees clips frame by frame.
ALL = (*WATCHING, "tiny", "llava")
ANSWERS = ("There is a big blue fish.", "", "Yes. There is a small tree on the left.")


def ask(*parts: Any) -> Chat:
    return Chat((Message("user", parts),))


def chats() -> list[Chat]:
    """Clips of different sizes and lengths, and everything that may stand beside them."""
    return [
        ask(clip(0), "Describe the video."),
        ask(clip(1, size=(48, 32)), "What colour is the crab?"),
        ask(clip(2, frames=6), "Is there a red boat in the picture? Answer yes or no."),
        ask(clip(3, frames=3), "Yes"),
        ask("Say: ", clip(4, frames=1), "six"),
        ask(clip(5), clip(6, size=(32, 48)), "What colour is the tree?"),
        ask(picture(7), "left", clip(8), "Describe."),
        ask(clip(9, frames=5), picture(10), clip(11), "Describe."),
        ask(picture(12), picture(13, (48, 32)), "Describe the picture."),
        ask(picture(14), "What colour is the fish?"),
        ask("What colour is the crab?"),
    ]


@cache
def exact(name: str) -> Loaded:
    """In double precision, so that rounding in batches of different shapes stays far below the tolerances."""
    loaded = tiny(name)
    loaded.model.double()
    return loaded


def by_hand(loaded: Loaded, text: str, clips: Sequence[Clip]) -> Any:
    """What transformers makes of clips whose frames are all the frames of a file, at a constant rate."""
    return loaded.processor(
        text=[text],
        videos=[np.stack([np.asarray(image) for image in shown.images]) for shown in clips],
        video_metadata=[
            VideoMetadata(
                total_num_frames=len(shown.images),
                fps=2.0,
                frames_indices=list(range(len(shown.images))),
                duration=len(shown.images) / 2,
            )
            for shown in clips
        ],
        do_sample_frames=False,
        return_tensors="pt",
    )


def clips_of(chat: Chat) -> list[Clip]:
    return [part for part in chat.media if isinstance(part, Clip)]


def as_pixels(inputs: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {key: value.to(dtype) if "pixel_values" in key else value for key, value in inputs.items()}


# Tensors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WATCHING, "tiny"])
@pytest.mark.parametrize("frames", [2, 3, 4, 8])
def test_tensors_are_those_that_the_processor_makes(name: str, frames: int) -> None:
    renderer = shared(name).renderer
    asked = ask(clip(0, frames=frames, size=(40, 24)), "What?")
    text = renderer.prompt(asked)
    found, expected = renderer.encode([text], [asked.media]), by_hand(shared(name), text, clips_of(asked))
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("number", range(11))
def test_lengths_are_those_of_the_tensors(name: str, number: int) -> None:
    renderer, asked = shared(name).renderer, chats()[number]
    text = renderer.prompt(asked)
    for _ in range(2):
        assert renderer.num_tokens(text, asked.media) == renderer.encode([text], [asked.media])["input_ids"].shape[1]


@pytest.mark.parametrize("name", [*WATCHING, "tiny"])
def test_clips_of_one_size_and_length_are_measured_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(name)
    renderer, seen = loaded.renderer, []
    assert renderer.num_tokens(renderer.prompt(ask(clip(0))), [clip(0)])
    process = type(loaded.processor.video_processor).__call__
    monkeypatch.setattr(
        type(loaded.processor.video_processor), "__call__", lambda *a, **k: (seen.append(1), process(*a, **k))[1]
    )
    # Times differ in their number of digits, so where a model is told them its tokens do, too.
    clips = [clip(0, fps=1.0, times=(0.0, 9.0, 10.0, last)) for last in (11.0, 99.0, 1234.0, 56789.0)]
    found = [renderer.num_tokens(renderer.prompt(ask(shown, "What?")), [shown]) for shown in clips]
    assert not seen
    for shown, length in zip(clips, found, strict=True):
        assert renderer.encode([renderer.prompt(ask(shown, "What?"))], [[shown]])["input_ids"].shape[1] == length
    assert (len(set(found)) > 1) == (name in ("qwen3-vl", "tiny", "smolvlm"))


@pytest.mark.parametrize("name", ["qwen3-vl", "internvl"])
@pytest.mark.parametrize("number", range(11))
def test_lengths_of_processors_that_tell_nothing(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, asked = tiny(name).renderer, chats()[number]
    monkeypatch.setattr(renderer._media, "expansions", lambda text, media: None)
    text = renderer.prompt(asked)
    assert renderer.num_tokens(text, asked.media) == renderer.encode([text], [asked.media])["input_ids"].shape[1]


def test_a_prompt_is_counted_with_its_media() -> None:
    renderer = shared("llava-onevision").renderer
    assert renderer.count(ask(clip(0), "What?")) == (25, 17)
    assert renderer.count(ask("What?"))[1] == 0
    assert renderer.takes_videos
    assert not shared("llava").renderer.takes_videos
    assert not shared("llama").renderer.takes_videos
    with pytest.raises(SampleError, match=r"the model cannot take this prompt: .*aspect ratio"):
        shared("qwen3-vl").renderer.count(ask(clip(0, size=(900, 2))))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("number", range(11))
def test_features_are_counted_as_the_model_makes_them(name: str, number: int) -> None:
    loaded, asked = shared(name), chats()[number]
    inputs = loaded.renderer.encode([loaded.renderer.prompt(asked)], [asked.media])
    config = loaded.model.config
    made = 0
    with torch.inference_mode():
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                extra = {key: inputs[key] for key in inputs if key.startswith(kind) or key == "pixel_attention_mask"}
                if kind == "image" and "batch_num_images" in inputs:
                    extra["batch_num_images"] = inputs["batch_num_images"]
                features = getattr(loaded.model.model, f"get_{kind}_features")(inputs[pixels], **extra).pooler_output
                numbers = features.numel() if torch.is_tensor(features) else sum(part.numel() for part in features)
                made += numbers // config.get_text_config().hidden_size
    assert num_features(config, inputs) == made
    assert int(torch.isin(inputs["input_ids"], torch.tensor(placeholder_ids(config))).sum()) == made


@pytest.mark.parametrize("name", ["qwen3-vl", "tiny"])
@given(
    fps=st.sampled_from((1.0, 2.0, 24.0, 25.0, 30.0, 30000 / 1001)),
    numbers=st.lists(st.integers(0, 900), min_size=1, max_size=6, unique=True).map(sorted),
)
@settings(max_examples=12, deadline=None)
def test_the_seconds_that_qwen3_writes_are_the_clips(name: str, fps: float, numbers: list[int]) -> None:
    shown = clip(0, fps=fps, times=tuple(number / fps for number in numbers))
    renderer = shared(name).renderer
    ids = renderer.encode([renderer.prompt(ask(shown, "What?"))], [[shown]])["input_ids"][0]
    text = renderer.tokenizer.decode(ids)
    times = shown.times + shown.times[-1:] * (len(numbers) % 2)
    expected = [f"<{(first + second) / 2:.1f} seconds>" for first, second in zip(times[::2], times[1::2], strict=True)]
    assert [f"<{part.split('<')[-1]} seconds>" for part in text.split(" seconds>")[:-1]] == expected


def test_seconds_follow_a_variable_rate_and_dropped_frames() -> None:
    renderer = shared("qwen3-vl").renderer
    shown = clip(0, fps=30.0, times=(0.013, 0.4567, 3.21, 7.0, 7.7, 60.29))
    ids = renderer.encode([renderer.prompt(ask(shown, "What?"))], [[shown]])["input_ids"][0]
    assert [f"<{second} seconds>" in renderer.tokenizer.decode(ids) for second in ("0.2", "5.1", "34.0")] == [True] * 3


def test_qwen25_places_frames_by_their_own_rate() -> None:
    renderer = shared("qwen2.5-vl").renderer
    shown = clip(0, fps=30.0, times=(10.0, 11.5, 13.0, 14.5))
    assert renderer.encode([renderer.prompt(ask(shown))], [[shown]])["second_per_grid_ts"].tolist() == [3.0]


def test_smolvlm_is_told_the_minutes_and_seconds() -> None:
    renderer = shared("smolvlm").renderer
    shown = clip(0, fps=30.0, times=(0.0, 3.0, 61.0 - 1 / 30, 61.0))
    ids = renderer.encode([renderer.prompt(ask(shown))], [[shown]])["input_ids"][0]
    text = renderer.tokenizer.decode(ids)
    assert [f"Frame from 0{part}:<" in text for part in ("0:00", "0:03", "1:00", "1:01")] == [True] * 4
    assert "series of four frames from a 0:01:01 [H:MM:SS] video" in text


@pytest.mark.parametrize("name", WATCHING)
def test_a_frame_three_pixels_wide_is_no_row_of_channels(name: str) -> None:
    renderer = shared(name).renderer
    shown = clip(0, size=(3, 3))
    inputs = renderer.encode([renderer.prompt(ask(shown))], [[shown]])
    upright = Clip(tuple(image.rotate(90) for image in shown.images), shown.times, shown.ref)
    other = renderer.encode([renderer.prompt(ask(upright))], [[upright]])
    pixels = "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"
    assert inputs[pixels].shape == other[pixels].shape
    assert not torch.allclose(inputs[pixels], other[pixels])


# Forms ----------------------------------------------------------------------------------------------------------------


def test_clips_are_written_as_templates_want_them() -> None:
    asked = ask("See ", clip(0, frames=3), "?")
    mark = "<|vision_start|><|video_pad|><|vision_end|>"
    assert shared("qwen3-vl").renderer.prompt(asked) == f"<|user|>See {mark}?<|end|>\n<|assistant|>"
    assert shared("llava").renderer.prompt(asked).count("<image>") == 3
    processor = tiny("llava-onevision").processor
    processor.chat_template = STRING_TEMPLATE.removeprefix("<|begin|>")
    assert Renderer(processor).prompt(asked) == "<|user|>See <video>\n?<|end|>\n<|assistant|>"
    processor.chat_template = MARKS_TEMPLATE.replace("p.type == 'video'", "p.type == 'film'")
    assert Renderer(processor).prompt(asked).count("<image>") == 3


@pytest.mark.parametrize(
    ("name", "mixes", "lengths"),
    [
        ("qwen2.5-vl", True, True),
        ("qwen3-vl", True, True),
        ("tiny", True, True),
        ("llava-onevision", True, False),
        ("llava-next-video", True, False),
        ("internvl", True, False),
        ("smolvlm", False, False),
    ],
)
def test_what_a_processor_takes_is_found_by_trying(name: str, mixes: bool, lengths: bool) -> None:
    renderer = shared(name).renderer
    two, mixed = [clip(0), clip(1, frames=6)], [clip(0), picture()]
    mark = renderer.processor.video_token
    assert (mark in renderer.prompt(ask(*mixed))) == mixes
    assert (mark in renderer.prompt(ask(*two))) == lengths
    assert (renderer.group([clip(0)]) == renderer.group([clip(1, frames=6)])) == lengths
    assert renderer.group([clip(0)]) != renderer.group([picture()]) != renderer.group([])
    assert renderer.group([]) == TEXT_ONLY == shared("llama").renderer.group([])
    # What does not fit into one batch is refused in a sentence, and never mixed up.
    for rows, fits in (([[clip(0)], [clip(1, frames=6)]], lengths), ([[clip(0)], [picture()]], mixes)):
        texts = [renderer.prompt(ask(*row)) for row in rows]
        if fits:
            assert len(renderer.encode(texts, rows)["input_ids"]) == 2
        else:
            with pytest.raises(ValueError, match="in one batch, not"):
                renderer.encode(texts, rows)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_without_media_share_a_batch_with_any(name: str, side: Any) -> None:
    renderer = shared(name).renderer
    rows: list[tuple[Media, ...]] = [(), (clip(0),), (), (clip(1),)]
    texts = [renderer.prompt(ask(*row, "What colour is it?" * (i + 1))) for i, row in enumerate(rows)]
    together = renderer.encode(texts, rows, side)
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        alone = renderer.encode([text], [row], side)
        for key in ("input_ids", "mm_token_type_ids"):
            if key in alone:
                real = together[key][index][together["attention_mask"][index].bool()]
                assert torch.equal(real, alone[key][0])


def test_nothing_is_truncated_whatever_the_tokenizer_says() -> None:
    loaded = tiny("qwen3-vl")
    asked = ask(clip(0), "Describe the picture in detail.")
    whole = loaded.renderer.encode([loaded.renderer.prompt(asked)], [asked.media])["input_ids"]
    loaded.processor.tokenizer.init_kwargs |= {"truncation": True, "max_length": 8}
    loaded.processor.tokenizer.model_max_length = 8
    again = Renderer(loaded.processor)
    assert torch.equal(again.encode([again.prompt(asked)], [asked.media])["input_ids"], whole)


# The three verbs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WATCHING, "tiny"])
async def test_scores_equal_the_plain_forward(name: str) -> None:
    loaded = exact(name)
    renderer = loaded.renderer
    asked = chats()[:6]
    async with LocalLM(loaded, max_batch_size=4) as lm:
        scores = await asyncio.gather(*(lm.score(one, ANSWERS) for one in asked))
    for one, row in zip(asked, scores, strict=True):
        if any(len(shown.images) == 1 for shown in clips_of(one)) and name in ("qwen3-vl", "tiny"):
            continue  # transformers refuses these by hand
        prompt = renderer.prompt(one)
        start = by_hand(loaded, prompt, clips_of(one))["input_ids"].shape[1]
        for text, score in zip(ANSWERS, row, strict=True):
            inputs = by_hand(loaded, prompt + renderer.answer(one, text), clips_of(one))
            with torch.inference_mode():
                logps = loaded.model(**as_pixels(inputs, torch.float64)).logits[0].log_softmax(-1)
            ids = inputs["input_ids"][0]
            plain = [float(logps[at - 1, ids[at]]) for at in range(start, len(ids))]
            assert list(score.logps) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
async def test_no_answer_depends_on_its_batch(name: str) -> None:
    asked, loaded = chats()[:: 2 if name == "tiny" else 1], exact(name)
    greedy, free = Sampling(max_new_tokens=5), Sampling(temperature=1.0, max_new_tokens=5)
    results = []
    for size in (1, 5):
        order = list(range(len(asked)))
        random.Random(size).shuffle(order)
        async with LocalLM(loaded, max_batch_size=size) as lm:
            done = await asyncio.gather(
                *(
                    asyncio.gather(
                        lm.generate(asked[i], greedy, seed=0),
                        lm.generate(asked[i], free, seed=i),
                        lm.score(asked[i], ANSWERS[1:]),
                        lm.choose(asked[i], YES_NO),
                    )
                    for i in order
                )
            )
        results.append([done[order.index(i)] for i in range(len(asked))])
    for one, other in zip(*results, strict=True):
        assert other[:2] == one[:2]
        assert [s.tokens for s in other[2]] == [s.tokens for s in one[2]]
        for a, b in zip(one[2], other[2], strict=True):
            assert b.logps == pytest.approx(a.logps, abs=1e-5)
        assert other[3].probabilities == pytest.approx(one[3].probabilities, abs=1e-5)
    assert len({tuple(score.total for score in one[2]) for one in results[0]}) == len(asked)


@pytest.mark.parametrize("name", [*WATCHING, "tiny"])
async def test_greedy_equals_plain_generate(name: str) -> None:
    loaded = shared(name)
    asked = [chats()[number] for number in (0, 1, 2, 3, 5)]
    if loaded.renderer.prompt(asked[-1]).count(loaded.processor.video_token) != 2:
        asked.pop()
    async with LocalLM(loaded) as lm:
        done = await asyncio.gather(*(lm.generate(one, Sampling(max_new_tokens=12), seed=0) for one in asked))
    end = loaded.renderer.tokenizer.convert_tokens_to_ids(loaded.renderer.end_of_turn)
    for one, completion in zip(asked, done, strict=True):
        inputs = by_hand(loaded, loaded.renderer.prompt(one), clips_of(one))
        pad = loaded.renderer.tokenizer.pad_token_id
        out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=end, pad_token_id=pad)
        text = loaded.renderer.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert completion.text == loaded.renderer.strip_lead(text)


@pytest.mark.parametrize("name", ALL)
async def test_the_three_verbs_agree(name: str) -> None:
    loaded, asked = exact(name), ask(clip(0), "Describe.")
    tokenizer = loaded.renderer.tokenizer
    async with LocalLM(loaded) as lm:
        done = await lm.generate(asked, Sampling(max_new_tokens=1), seed=0)
        [score] = await lm.score(asked, ["There is a crab."])
        with torch.inference_mode():
            logps = lm._batches.next_logits([lm._batches.prompt(asked)])[0].log_softmax(-1)
    best = tokenizer.decode([int(logps.argmax())], skip_special_tokens=True)
    assert done.text == loaded.renderer.strip_lead(best)
    assert score.logps[0] == pytest.approx(float(logps[score.tokens[0]]), abs=1e-5)


@pytest.mark.parametrize("name", ALL)
async def test_the_order_of_the_frames_reaches_the_model(name: str) -> None:
    shown = clip(0, frames=6)
    turned = Clip(shown.images[::-1], shown.times, shown.ref)
    slower = Clip(shown.images, tuple(3 * time for time in shown.times), shown.ref)
    async with LocalLM(exact(name)) as lm:
        totals = [(await lm.score(ask(media, "Describe."), ANSWERS[:1]))[0].total for media in (shown, turned, slower)]
    assert abs(totals[0] - totals[1]) > 1e-3
    # Times reach those models that are told them.
    assert (abs(totals[0] - totals[2]) > 1e-3) == (name in ("qwen2.5-vl", "qwen3-vl", "tiny", "smolvlm"))


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [("internvl", "image_seq_length", 9), ("smolvlm", "image_seq_len", 5), ("llava-next-video", "patch_size", 16)],
)
async def test_a_processor_of_another_model_is_named_before_the_model_runs(
    name: str, attribute: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny(name)
    monkeypatch.setattr(loaded.processor, attribute, value)
    monkeypatch.setattr(loaded.model, "forward", lambda **kwargs: pytest.fail("the model ran"))
    async with LocalLM(loaded) as lm:
        with pytest.raises(SampleError, match=r"placeholder tokens for media, but the model will compute \d+ features"):
            await lm.score(ask(clip(0), "What?"), ["Yes."])


async def test_a_clip_for_a_text_model_is_refused() -> None:
    async with LocalLM(shared("llama")) as lm:
        with pytest.raises(SampleError, match="reads text only"):
            await lm.generate(ask(clip(0), "What?"), Sampling(), seed=0)


@pytest.mark.parametrize("name", WATCHING)
def test_the_mark_of_a_video_in_text_is_refused(name: str) -> None:
    renderer = shared(name).renderer
    with pytest.raises(SampleError, match="control token"):
        renderer.prompt(ask(f"see {renderer.processor.video_token} here"))


def test_a_prompt_without_a_place_for_its_clip_is_refused() -> None:
    renderer = shared("qwen3-vl").renderer
    with pytest.raises(ValueError, match="the prompt has 0 places for 1 pictures or videos"):
        renderer.num_tokens("What?", [clip(0)])
