from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from mmalign.corrupt import apply
from mmalign.errors import MediaError, NoPair, RecipeError
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.stic import STIC
from mmalign.text.prompts import IMAGINE, PLAIN, STEP_BY_STEP
from mmalign.types import Chat, Clip, Corruption, MediaRef, Pair, Picture, Sample


def pixels(chat: Chat) -> bytes:
    [medium] = chat.media
    return bytes(f"{medium.image.size}", "ascii") + medium.image.tobytes()


def by_pixels(clean: Picture) -> ScriptedLM:
    """Answers with what it was asked and whether the picture it received is the clean one."""

    def answer(chat: Chat, *_: object) -> str:
        [medium] = chat.media
        return f"{'clean' if medium.image.tobytes() == clean.image.tobytes() else 'damaged'}: {chat.prompt}"

    return ScriptedLM(answer)


@pytest.mark.parametrize("seed", range(24))
async def test_what_the_record_says_is_what_reached_the_model(
    run: Any, sample: Sample, picture: Picture, seed: int
) -> None:
    """The released code records a damaged picture but shows the clean one; this test fails on such code."""
    lm = by_pixels(picture)
    [pair] = await run(STIC(), sample, lm, seed=seed)
    (_, good), (_, bad) = lm.asked
    assert (good.prompt, pixels(good)) == (STEP_BY_STEP, pixels(sample.ask("")))
    assert pair.chosen.text == f"clean: {STEP_BY_STEP}"
    recorded = [Corruption.from_row(row) for row in pair.provenance["rejected_media"][0].get("corruptions", ())]
    assert (pixels(bad) != pixels(good)) == (pair.source != "bad_prompt") == bool(recorded)
    assert (bad.prompt in IMAGINE) == (pair.source == "bad_prompt")
    assert (bad.prompt == pair.context.prompt) == (pair.source != "bad_prompt")
    assert pair.rejected.text == f"{'damaged' if recorded else 'clean'}: {pair.provenance['rejected_prompt']}"
    assert pair.provenance["rejected_prompt"] == bad.prompt
    if recorded:
        [damage] = recorded
        assert damage.name == pair.source
        assert apply(picture, damage).image.tobytes() == bad.media[0].image.tobytes()


@pytest.mark.parametrize("seed", range(12))
async def test_the_pair_is_stored_under_a_plain_prompt_and_the_clean_picture(
    run: Any, sample: Sample, picture: Picture, seed: int
) -> None:
    [pair] = await run(STIC(), sample, by_pixels(picture), seed=seed)
    assert pair.context.prompt in PLAIN
    assert pair.context.media == (picture,)
    assert pair.context.media[0].ref.corruptions == ()
    assert pair.rejected_context is None
    assert pair.provenance["chosen_prompt"] == STEP_BY_STEP


async def pairs_of(run: Any, sample: Sample, count: int, **settings: Any) -> list[Pair]:
    lm = ScriptedLM(lambda chat, *_: chat.prompt + str(chat.media[0].image.size))
    method = STIC(**settings)
    return [(await run(method, Sample(f"s{i}", sample.media), lm))[0] for i in range(count)]


async def test_sources_come_half_a_quarter_a_quarter(run: Any) -> None:
    small = Picture(Image.effect_noise((9, 9), 60).convert("RGB"), MediaRef("n.png"))
    count = 2000
    pairs = await pairs_of(run, Sample("s", (small,)), count)
    sources = Counter(pair.source for pair in pairs)
    for source, p in {"bad_prompt": 0.5, "low_resolution": 0.25, "color_jitter": 0.25}.items():
        assert abs(sources[source] - count * p) < 3 * math.sqrt(count * p * (1 - p))
    prompts = Counter(pair.context.prompt for pair in pairs)
    assert all(abs(prompts[plain] - count / 8) < 3.5 * math.sqrt(count * 7 / 64) for plain in PLAIN)
    tempted = Counter(pair.provenance["rejected_prompt"] for pair in pairs if pair.source == "bad_prompt")
    assert set(tempted) == set(IMAGINE)


async def test_damage_parameters_stay_in_their_ranges(run: Any, sample: Sample) -> None:
    pairs = await pairs_of(run, sample, 40, p_bad_prompt=0.0, short_side=5, brightness=(0.2, 0.3), hue=(0.1, 0.2))
    for pair in pairs:
        [damage] = pair.provenance["rejected_media"][0]["corruptions"]
        if damage["name"] == "low_resolution":
            assert (damage["params"]["width"], damage["params"]["height"]) == (6, 5)
        else:
            assert 0.2 <= damage["params"]["brightness"] <= 0.3
            assert 0.1 <= damage["params"]["hue"] <= 0.2


async def test_other_damage_by_name(run: Any, sample: Sample) -> None:
    pairs = await pairs_of(run, sample, 4, p_bad_prompt=0.0, corruptions=("blank",))
    assert {pair.source for pair in pairs} == {"blank"}


async def test_every_picture_of_a_sample_is_damaged(run: Any, picture: Picture) -> None:
    lm = ScriptedLM(lambda chat, *_: chat.prompt)
    two = Sample("two", (picture, picture))
    [pair] = await run(STIC(p_bad_prompt=0.0), two, lm)
    bad = lm.asked[1][1]
    assert [bool(m.ref.corruptions) for m in bad.media] == [True, True]
    assert len(pair.provenance["rejected_media"]) == 2


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        ("", "A dog.", "empty"),
        ("A dog.", " \n", "empty"),
        ("A dog. ", "a  DOG.", "equal"),
        ("A dog " * 5, "A cat.", "cut off"),
    ],
)
async def test_pairs_that_teach_nothing_are_dropped(run: Any, sample: Sample, good: str, bad: str, reason: str) -> None:
    lm = ScriptedLM(lambda chat, *_: good if chat.prompt == STEP_BY_STEP else bad)
    with pytest.raises(NoPair, match=reason):
        await run(STIC(max_new_tokens=6), sample, lm)


async def test_a_rejected_side_may_be_cut_off(run: Any, sample: Sample) -> None:
    lm = ScriptedLM(lambda chat, *_: "A dog." if chat.prompt == STEP_BY_STEP else "A cat " * 9)
    [pair] = await run(STIC(max_new_tokens=6), sample, lm)
    assert pair.rejected.finish == "length"


async def test_a_picture_that_cannot_be_damaged_is_the_samples_error(run: Any) -> None:
    flat = Sample("flat", (Picture(Image.new("RGB", (8, 8), (9, 9, 9)), MediaRef("flat.png")),))
    with pytest.raises(MediaError, match=r"flat\.png"):
        await run(STIC(p_bad_prompt=0.0, corruptions=("low_resolution",)), flat, ScriptedLM({"*": "x"}))


async def test_equal_seeds_give_equal_pairs_whatever_else_runs(run: Any, sample: Sample, picture: Picture) -> None:
    first = await run(STIC(), sample, by_pixels(picture), seed=3)
    random.seed(99)
    assert await run(STIC(), sample, by_pixels(picture), seed=3) == first


async def test_own_prompts_take_the_place_of_the_pools(run: Any, sample: Sample, picture: Picture) -> None:
    lm = by_pixels(picture)
    method = STIC(p_bad_prompt=1.0, good_prompt="G", plain_prompts=("P",), bad_prompts=("B",))
    [pair] = await run(method, sample, lm)
    assert [chat.prompt for _, chat in lm.asked] == ["G", "B"]
    assert pair.context.prompt == "P"


@pytest.mark.parametrize("seed", range(12))
async def test_clips_are_damaged_as_a_whole_and_asked_about_as_videos(run: Any, filmed: Sample, seed: int) -> None:
    lm = ScriptedLM(lambda chat, *_: f"{bool(chat.media[0].ref.corruptions)}: {chat.prompt}")
    [pair] = await run(STIC(), filmed, lm, seed=seed)
    [clean], [shown] = filmed.media, lm.asked[1][1].media
    assert isinstance(clean, Clip)
    assert isinstance(shown, Clip)
    assert pair.context.media == filmed.media
    for text in (pair.context.prompt, pair.provenance["chosen_prompt"], pair.provenance["rejected_prompt"]):
        assert "picture" not in text
    damaged = [before.tobytes() != after.tobytes() for before, after in zip(clean.images, shown.images, strict=True)]
    assert set(damaged) == {pair.source != "bad_prompt"}  # every frame, or none
    if pair.source != "bad_prompt":
        [row] = pair.provenance["rejected_media"][0]["corruptions"]
        again = apply(clean, Corruption.from_row(row))
        assert [image.tobytes() for image in again.images] == [image.tobytes() for image in shown.images]


async def test_damage_to_the_order_of_time_is_for_clips_only(run: Any, sample: Sample, filmed: Sample) -> None:
    lm = ScriptedLM(lambda chat, *_: chat.prompt)
    method = STIC(p_bad_prompt=0.0, corruptions=("reverse",))
    assert [pair.source for pair in await run(method, filmed, lm)] == ["reverse"]
    with pytest.raises(RecipeError, match="reverse: is one of videos"):
        await run(method, sample, lm)


async def test_prompts_of_users_are_asked_as_they_are(run: Any, filmed: Sample) -> None:
    own = "What does the picture frame on the wall show?"
    lm = ScriptedLM(lambda chat, sampling, seed: f"{chat.prompt} {seed}")
    method = STIC(p_bad_prompt=1.0, good_prompt=own, plain_prompts=(own,), bad_prompts=(own,))
    [pair] = await run(method, filmed, lm)
    assert {chat.prompt for _, chat in lm.asked} == {own} == {pair.context.prompt}
