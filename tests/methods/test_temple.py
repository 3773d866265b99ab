from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.corrupt import apply
from mmalign.errors import NoPair, SampleError
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.temple import TEMPLE
from mmalign.recipe.load import load_recipe
from mmalign.text.captions import FIRST_PART, NEXT_PART, WHOLE
from mmalign.text.prompts import TELL
from mmalign.types import Chat, Clip, Completion, Corruption, MediaRef, Pair, Picture, Sample, Sampling

MakeClip = Callable[[int], Clip]


def colours(num: int) -> Clip:
    """Frame 3 is of the colour (3, 0, 0), so that a model can tell which frames it sees."""
    images = tuple(Image.new("RGB", (4, 4), (at, 0, 0)) for at in range(num))
    return Clip(images, tuple(map(float, range(num))), MediaRef("colours.mp4", "video", "ab" * 32))


def seen(chat: Chat) -> list[int]:
    """Which frames a chat shows, in order."""
    return [image.getpixel((0, 0))[0] for medium in chat.media for image in medium.images]  # type: ignore[union-attr]


def told(numbers: list[int]) -> str:
    return "Told: " + " ".join(f"n{number:03}" for number in numbers)


def teller() -> ScriptedLM:
    """Captions a part by its last frame, and tells the whole by what it is shown or reads."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt in (FIRST_PART, NEXT_PART):
            return f"Clip 1 goes on.\nCaption: **part {seen(chat)[-1]}**"
        if not chat.media:
            return told([int(number) for number in re.findall(r"part (\d+)", chat.prompt)])
        return told(seen(chat))

    return ScriptedLM(answer)


def pairs_of(made: list[Any]) -> list[Pair]:
    return [pair for pair in made if isinstance(pair, Pair)]


def reasons(made: list[Any]) -> Counter[str]:
    return Counter(str(drop) for drop in made if isinstance(drop, NoPair))


ONE_FRAME = {"num_clips": 8, "clip_frames": 1, "ratios": (8, 4, 2)}


@pytest.mark.parametrize("level", ["caption", "clip", "video"])
async def test_every_kind_and_ratio_gives_a_pair_of_the_same_clean_text(run: Any, level: Any) -> None:
    made = await run(TEMPLE(level=level, **ONE_FRAME), Sample("s", (colours(8),)), teller())
    pairs = pairs_of(made)
    assert len(pairs) == len(made) == 8  # three kinds at three ratios; two blocks can only change places
    assert {pair.chosen.text for pair in pairs} == {told(list(range(8)))}
    assert [(p.source, p.provenance["ratio"]) for p in pairs] == [
        ("drop", 8),
        ("reverse", 8),
        ("shuffle", 8),
        ("drop", 4),
        ("reverse", 4),
        ("shuffle", 4),
        ("drop", 2),
        ("reverse", 2),
    ]
    for pair in pairs:
        assert pair.rejected.text == told(pair.provenance["order"])
        assert pair.provenance["longer_by"] == len(pair.chosen.text) - len(pair.rejected.text)
    json.dumps([dict(pair.provenance) for pair in pairs])


@pytest.mark.parametrize("level", ["caption", "clip", "video"])
async def test_training_is_about_the_whole_clean_clip_under_a_request_of_the_pool(run: Any, level: Any) -> None:
    prompts: Counter[str] = Counter()
    for seed in range(12):
        sample = Sample(f"s{seed}", (colours(8),))
        for pair in pairs_of(await run(TEMPLE(level=level, **ONE_FRAME), sample, teller())):
            assert pair.context.media == sample.media
            assert pair.context == sample.ask(pair.context.prompt)
            assert pair.rejected_context is None
            prompts[pair.context.prompt] += 1
    assert set(prompts) == set(TELL)  # drawn for each pair


async def test_stages_go_from_the_strongest_damage_to_the_subtlest(run: Any) -> None:
    method = TEMPLE(level="video", ratios=(2, 16, 4, 8))
    made = pairs_of(await run(method, Sample("s", (colours(16),)), teller()))
    assert {(pair.provenance["ratio"], pair.stage) for pair in made} == {(16, 0), (8, 1), (4, 2), (2, 3)}
    kept = [len(pair.provenance["order"]) for pair in made if pair.source == "drop"]
    assert kept == sorted(kept) == [1, 2, 4, 8]
    assert [pair.stage for pair in made] == sorted(pair.stage for pair in made)


async def test_ratios_with_equal_blocks_come_once_and_keep_their_stage(run: Any) -> None:
    made = pairs_of(await run(TEMPLE(level="video"), Sample("s", (colours(10),)), teller()))
    assert {(pair.provenance["ratio"], pair.stage) for pair in made} == {(16, 0), (4, 2), (2, 3)}


async def test_captions_show_the_part_before_and_come_from_their_own_part(run: Any) -> None:
    lm = teller()
    await run(TEMPLE(num_clips=4, ratios=(2,)), Sample("s", (colours(12),)), lm)
    asked = [(chat.prompt, seen(chat), len(chat.media)) for _, chat in lm.asked[:4]]
    # Parts of three frames, each shown at one and two thirds.
    assert asked == [
        (FIRST_PART, [1, 2], 1),
        (NEXT_PART, [1, 2, 4, 5], 2),
        (NEXT_PART, [4, 5, 7, 8], 2),
        (NEXT_PART, [7, 8, 10, 11], 2),
    ]
    whole = lm.asked[4][1]
    assert whole.media == ()
    assert whole.prompt == WHOLE.format(captions="1. part 2\n2. part 5\n3. part 8\n4. part 11")
    reversed_list = next(c.prompt for _, c in lm.asked[5:] if "1. part 8" in c.prompt)
    assert reversed_list == WHOLE.format(captions="1. part 8\n2. part 11\n3. part 2\n4. part 5")


async def test_the_level_clip_shows_the_parts_as_clips_in_the_damaged_order(run: Any) -> None:
    lm = teller()
    method = TEMPLE(level="clip", num_clips=4, ratios=(2,), kinds=("reverse",))
    [pair] = await run(method, Sample("s", (colours(8),)), lm)
    (_, clean), (_, damaged) = lm.asked
    assert [len(medium.images) for medium in clean.media] == [2, 2, 2, 2]  # type: ignore[union-attr]
    assert (seen(clean), seen(damaged)) == ([0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3])
    assert clean.prompt == damaged.prompt == pair.provenance["rejected_prompt"]
    assert clean.prompt in TELL


async def test_the_level_video_records_what_reached_the_model(run: Any) -> None:
    lm, clip = teller(), colours(8)
    made = pairs_of(await run(TEMPLE(level="video", ratios=(4,)), Sample("s", (clip,)), lm))
    for pair, (_, chat) in zip(made, lm.asked[1:], strict=True):
        [shown] = chat.media
        [record] = pair.provenance["rejected_media"]
        [row] = record["corruptions"]
        again = apply(clip, Corruption.from_row(row))
        assert row["name"] == f"block_{pair.source}"
        assert isinstance(shown, Clip)
        assert [i.tobytes() for i in again.images] == [i.tobytes() for i in shown.images]
        assert again.times == shown.times
        assert seen(chat) == pair.provenance["order"]


async def test_decoding(run: Any) -> None:
    used: Counter[tuple[bool, Sampling]] = Counter()

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        used[chat.prompt in (FIRST_PART, NEXT_PART), sampling] += 1
        return f"Told {seed}."

    await run(TEMPLE(num_clips=4, ratios=(4,)), Sample("s", (colours(8),)), ScriptedLM(answer))
    told_by = Sampling(0.7, repetition_penalty=1.05, max_new_tokens=8192)
    assert used == {(True, Sampling(max_new_tokens=2048)): 4, (False, told_by): 4}


@pytest.mark.parametrize(
    ("kind", "chosen", "rejected", "reason"),
    [
        ("drop", "x" * 10, "y" * 10, "the rejected text is not shorter"),
        ("drop", "x" * 10, "y" * 9, ""),
        ("drop", "x" * 100, "y" * 9, ""),  # the ratio of lengths is for the other kinds
        ("reverse", "x" * 15, "y" * 10, ""),
        ("reverse", "x" * 16, "y" * 10, "the lengths differ too much"),
        ("shuffle", "x" * 10, "y" * 15, ""),
        ("shuffle", "x" * 10, "y" * 16, "the lengths differ too much"),
        ("none", "x" * 10, "y" * 16, "the lengths differ too much"),
        ("reverse", "a dog", "this is a dog.", "the chosen text is part of the rejected one"),
        ("reverse", "a dog\n", "a dog", "the chosen text is part of the rejected one"),
        ("reverse", "xxx", "N/A", "what is told of the damaged clip is unusable"),
        ("drop", "xxx", "", "what is told of the damaged clip is unusable"),
    ],
)
def test_filters_at_their_boundaries(kind: Any, chosen: str, rejected: str, reason: str) -> None:
    assert TEMPLE().refused(kind, chosen, Completion(rejected)) == reason


def test_a_text_that_was_cut_off_is_refused_and_filters_can_be_switched_off() -> None:
    cut = Completion("y" * 10, finish="length")
    assert TEMPLE().refused("reverse", "x" * 10, cut) == "what is told of the damaged clip is unusable"
    assert TEMPLE(shorter_drops=False).refused("drop", "x" * 10, Completion("y" * 10)) == ""
    assert TEMPLE(max_length_ratio=float("inf")).refused("reverse", "x" * 99, Completion("y")) == ""


async def test_dropped_pairs_are_counted_by_kind_and_reason(run: Any) -> None:
    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        return "whole" if seen(chat) == list(range(8)) else f"a longer text {seen(chat)}"

    method = TEMPLE(level="video", ratios=(8, 4))
    made = await run(method, Sample("s", (colours(8),)), ScriptedLM(answer))
    assert not pairs_of(made)
    assert reasons(made) == {
        "drop: the rejected text is not shorter": 2,
        "reverse: the lengths differ too much": 2,
        "shuffle: the lengths differ too much": 2,
    }


async def test_damage_that_nobody_sees_is_counted_and_the_rest_goes_on(run: Any) -> None:
    """Backwards, frames that mirror each other are the same ones; two blocks of them are not."""
    images = tuple(Image.new("RGB", (4, 4), (at, 0, 0)) for at in (0, 1, 1, 0))
    mirror = Clip(images, (0.0, 1.0, 2.0, 3.0), MediaRef("mirror.mp4", "video"))
    made = await run(TEMPLE(level="video", kinds=("reverse",), ratios=(4, 2)), Sample("s", (mirror,)), teller())
    assert reasons(made) == {"reverse: the damage cannot be seen": 1}
    assert [pair.provenance["order"] for pair in pairs_of(made)] == [[2, 3, 0, 1]]


async def test_the_control_compares_two_tellings_of_the_clean_clip(run: Any) -> None:
    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        assert seen(chat) == list(range(8))
        return f"Told {seed:020}."

    [pair] = await run(TEMPLE(level="video", kinds=("none",)), Sample("s", (colours(8),)), ScriptedLM(answer))
    assert (pair.source, pair.stage) == ("none", 0)
    assert pair.chosen.text != pair.rejected.text


@pytest.mark.parametrize(
    ("level", "num", "message"),
    [
        ("video", 4, "fewer than 4 frames, 4 parts of 1"),
        ("caption", 8, "fewer than 8 frames, 4 parts of 2"),
        ("clip", 8, "fewer than 8 frames, 4 parts of 2"),
    ],
)
async def test_too_short_a_clip_gives_no_pair(run: Any, level: Any, num: int, message: str) -> None:
    with pytest.raises(NoPair, match=message):
        await run(TEMPLE(level=level), Sample("s", (colours(num - 1),)), teller())
    assert pairs_of(await run(TEMPLE(level=level), Sample("s", (colours(num),)), teller()))


@pytest.mark.parametrize(("frames", "cut"), [(32, 16), (31, 15), (16, 8)])
async def test_every_part_has_its_frames_and_short_clips_have_fewer_parts(run: Any, frames: int, cut: int) -> None:
    lm = teller()
    await run(TEMPLE(level="clip"), Sample("s", (colours(frames),)), lm)
    assert [len(part.images) for part in lm.asked[0][1].media] == [2] * cut  # type: ignore[union-attr]


def captioner(captions: list[str]) -> ScriptedLM:
    """Captions the parts in turn, and tells the whole in words of its own each time."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt in (FIRST_PART, NEXT_PART):
            return captions[seen(chat)[-1]]
        return f"Told {seed:020}" + " at length" * chat.prompt.count("\n")

    return ScriptedLM(answer)


async def test_captions_that_are_all_equal_cannot_change_places(run: Any) -> None:
    lm = captioner(["A dog runs."] * 8)
    made = await run(TEMPLE(**ONE_FRAME), Sample("s", (colours(8),)), lm)
    assert {pair.source for pair in pairs_of(made)} == {"drop"}
    assert reasons(made) == {"reverse: the damage cannot be seen": 3, "shuffle: the damage cannot be seen": 3}
    asked = [chat.prompt for _, chat in lm.asked[8:]]
    assert len(set(asked)) == len(asked)  # no damaged request is the clean one


@pytest.mark.parametrize("seed", range(20))
async def test_captions_that_are_partly_equal_change_places_where_it_shows(run: Any, seed: int) -> None:
    """Of four blocks three read the same: one order in four looks clean, and backwards the clip is another one."""
    lm = captioner(["A dog runs."] * 6 + ["It sits.", "It sleeps."])
    made = await run(TEMPLE(**{**ONE_FRAME, "ratios": (4,)}), Sample("s", (colours(8),)), lm, seed=seed)
    assert [pair.source for pair in pairs_of(made)] == ["drop", "reverse", "shuffle"]
    assert not reasons(made)
    asked = [chat.prompt for _, chat in lm.asked[8:]]
    assert len(set(asked)) == 4


async def test_captions_that_read_the_same_backwards(run: Any) -> None:
    lm = captioner(["One.", "Two.", "Two.", "One."])
    method = TEMPLE(num_clips=4, clip_frames=1, ratios=(4,), kinds=("reverse", "shuffle"))
    made = await run(method, Sample("s", (colours(4),)), lm)
    assert reasons(made) == {"reverse: the damage cannot be seen": 1}
    assert [pair.source for pair in pairs_of(made)] == ["shuffle"]


async def test_parts_that_look_the_same_cannot_change_places(run: Any) -> None:
    frame, other = (Image.new("RGB", (4, 4), (at, 0, 0)) for at in (0, 1))
    method = TEMPLE(level="clip", kinds=("reverse", "shuffle"), **ONE_FRAME)
    still = Clip((frame,) * 8, tuple(map(float, range(8))), MediaRef("still.mp4", "video"))
    made = await run(method, Sample("s", (still,)), teller())
    assert not pairs_of(made)
    assert set(reasons(made)) == {"reverse: the damage cannot be seen", "shuffle: the damage cannot be seen"}
    moving = Clip((frame,) * 7 + (other,), still.times, still.ref)
    lm = teller()
    made = await run(method, Sample("s", (moving,)), lm)
    assert "reverse" in {pair.source for pair in pairs_of(made)}
    assert all(seen(chat) != seen(lm.asked[0][1]) for _, chat in lm.asked[1:])


async def test_the_control_is_told_from_equal_captions_too(run: Any) -> None:
    method = TEMPLE(kinds=("none",), **ONE_FRAME)
    made = await run(method, Sample("s", (colours(8),)), captioner(["A dog runs."] * 8))
    assert [pair.source for pair in made] == ["none"]


async def test_a_sample_needs_exactly_one_clip(run: Any, picture: Picture) -> None:
    for media in ((), (picture,), (colours(4), colours(4))):
        with pytest.raises(SampleError, match=f"one clip per sample, this one has {len(media)}"):
            await run(TEMPLE(), Sample("s", media), teller())


@pytest.mark.parametrize(("clean", "reason"), [("N/A", "clean clip is unusable"), ("w " * 9, "clean clip is unusable")])
async def test_an_unusable_clean_text_gives_no_pair(run: Any, clean: str, reason: str) -> None:
    with pytest.raises(NoPair, match=reason):
        await run(TEMPLE(level="video", max_new_tokens=5), Sample("s", (colours(8),)), ScriptedLM({"*": clean}))


async def test_an_unusable_caption_gives_no_pair(run: Any) -> None:
    with pytest.raises(NoPair, match="caption of a part is unusable"):
        await run(TEMPLE(), Sample("s", (colours(8),)), ScriptedLM({FIRST_PART: "A dog.", "*": "N/A"}))


async def test_a_prompt_of_the_data_is_the_only_one(run: Any) -> None:
    sample = replace(Sample("s", (colours(8),)), prompt="What happens?")
    lm = teller()
    made = pairs_of(await run(TEMPLE(level="video"), sample, lm))
    assert {chat.prompt for _, chat in lm.asked} == {pair.context.prompt for pair in made} == {"What happens?"}


async def test_equal_seeds_give_equal_pairs(run: Any) -> None:
    def rows(made: list[Any]) -> list[Any]:
        return [(p.context.to_rows(), p.rejected.text, dict(p.provenance)) for p in pairs_of(made)]

    sample = Sample("s", (colours(16),))
    first, again, other = [rows(await run(TEMPLE(), sample, teller(), seed=seed)) for seed in (3, 3, 4)]
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratios": (16, 1)}, "ratios: 1 damages nothing"),
        ({"ratios": ()}, "ratios: must not be empty"),
        ({"num_clips": 1}, "num_clips: 1 is too small"),
        ({"clip_frames": 0}, "clip_frames: 0 is too small"),
        ({"max_length_ratio": 0.5}, "max_length_ratio: 0.5 is too small"),
        ({"max_length_ratio": float("nan")}, "max_length_ratio: nan is too small"),
        ({"min_clips": 17}, r"min_clips: 17 are more than num_clips \(16\)"),
        ({"level": "clip", "num_clips": 3}, r"min_clips: 4 are more than num_clips \(3\)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 must be more than 0"),
        ({"temperature": -1.0}, "temperature: -1.0 must be 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 must be 1 or more"),
        ({"caption_tokens": 0}, "caption_tokens: 0 is too small"),
    ],
)
def test_wrong_values_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TEMPLE(**values)


def test_the_recipe_shows_every_part_by_all_of_its_frames() -> None:
    recipe = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "video" / "temple.yaml")
    assert recipe.data.num_frames == recipe.method.num_clips * recipe.method.clip_frames == 32


def test_frames_are_not_counted_as_parts() -> None:
    assert TEMPLE(level="video", min_clips=20, num_clips=16).min_clips == 20
