from __future__ import annotations

import contextlib
import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import NoPair
from mmalign.inject.cooccurrence import Cooccurrence
from mmalign.inject.language_prior import position_weights
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.apasi import APASI
from mmalign.text.objects import Vocabulary
from mmalign.text.prompts import DETAIL
from mmalign.text.sentences import sentences
from mmalign.types import Chat, Completion, Pair, Sample, Sampling

CAPTION = "A boat is on the lake. A fish swims below. The sun shines. There is no dog. A man rows slowly."
WORDS = Vocabulary.load()
KNOWN = Cooccurrence.learn(
    [
        ["boat", "fish", "anchor", "crab"],
        ["boat", "anchor", "lighthouse"],
        ["sun", "kite"],
        ["person", "hat"],
        ["lake", "dock"],
    ]
)


def surveyed(text: str = CAPTION, **more: Any) -> dict[str, Any]:
    return {"prompt": "Describe.", "text": text, "num_tokens": 9, "finish": "stop", "seed": None, "objects": [], **more}


def blind(text: str = " of old iron near the shore. And more.") -> ScriptedLM:
    return ScriptedLM(lambda chat, *_: text)


async def test_the_survey_is_the_greedy_description_and_what_it_names(sample: Sample) -> None:
    lm = ScriptedLM(lambda chat, sampling, seed: CAPTION if sampling == Sampling(max_new_tokens=1024) else "no")
    row = await APASI().survey(sample, SampleLM(lm, sample_id="s"), random.Random(0))
    assert row == json.loads(json.dumps(row))
    assert row["prompt"] in DETAIL
    assert (row["text"], row["finish"]) == (CAPTION, "stop")
    assert row["objects"] == ["boat", "fish", "lake", "person", "sun"]
    assert lm.asked[0][1].media == sample.media


async def test_a_clip_is_asked_about_as_a_video(run: Any, filmed: Sample) -> None:
    lm = ScriptedLM(
        lambda chat, *_: " of old iron near the shore." if chat.messages[-1].role == "assistant" else CAPTION,
        choose=lambda chat, options: (0.1, 0.9),
    )
    row = await APASI().survey(filmed, SampleLM(lm, sample_id="s"), random.Random(0))
    assert row["prompt"].replace("video", "picture") in DETAIL
    assert "picture" not in row["prompt"]
    [pair] = await run(APASI(check_absent=True), filmed, lm, row, KNOWN)
    assert pair.context.media == filmed.media
    questions = [chat for verb, chat in lm.asked if verb == "choose"]
    assert questions
    assert all("in the video?" in chat.prompt and chat.media == filmed.media for chat in questions)


def test_learning_counts_over_all_descriptions() -> None:
    known = APASI().learn(surveyed(objects=names) for names in (["a", "b"], ["a", "b"], ["a", "c"]))
    assert known.companions["a"] == ("b", "c")


@pytest.mark.parametrize("seed", range(20))
async def test_one_sentence_is_replaced_by_one_written_blind(run: Any, sample: Sample, seed: int) -> None:
    lm = blind()
    [pair] = await run(APASI(), sample, lm, surveyed(), KNOWN, seed=seed)
    assert pair.chosen == Completion(CAPTION, 9, "stop", None)
    assert pair.context.media == sample.media
    assert pair.context.prompt == "Describe."
    [index], [used] = pair.provenance["replaced"], pair.provenance["guides"]
    assert 1 <= index <= 4
    before, after = sentences(CAPTION), sentences(pair.rejected.text)
    assert [p.text for i, p in enumerate(after) if i != index] == [p.text for i, p in enumerate(before) if i != index]
    [(start, end)], [(start2, end2)] = pair.chosen_spans, pair.rejected_spans
    assert CAPTION[start:end] == before[index].text.strip()
    assert pair.rejected.text[start2:end2] == f"{used['phrase']} of old iron near the shore."
    [(verb, chat)] = lm.asked
    assert verb == "generate"
    assert chat.media == ()
    assert chat.messages[-1].role == "assistant"
    assert chat.messages[-1].text == CAPTION[:start] + used["phrase"]
    named = {mention.name for mention in WORDS.mentions(CAPTION)}
    assert used["object"] not in named
    kept = {m.name for i, piece in enumerate(before) if i != index for m in WORDS.mentions(piece.text)}
    assert any(used["object"] in KNOWN.companions.get(name, ()) for name in kept) or "dog" in kept


async def test_the_injected_request_is_as_specified(run: Any, sample: Sample) -> None:
    seen: list[Sampling] = []

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        seen.append(sampling)
        return " of old iron near the shore."

    await run(APASI(), sample, ScriptedLM(answer), surveyed(), KNOWN)
    assert seen == [Sampling(repetition_penalty=1.1, max_new_tokens=64, stop=(".",))]


@given(st.integers(0, 10_000))
async def test_the_key_object_comes_from_a_sentence_that_stays(seed: int) -> None:
    """All but the first sentence replaced: only the boat is left, so its companion comes first (offsets, not words)."""
    text = "A boat, old, large, blue, waits. The sun. The man. The dog."
    known = Cooccurrence.learn([["boat", "anchor"], ["sun", "kite"], ["person", "hat"], ["dog", "leash"]])
    lm = SampleLM(blind(), sample_id="s")
    method = APASI(injection_rate=0.75)
    [pair] = [p async for p in method.pairs(Sample("s"), lm, random.Random(seed), surveyed(text), known)]
    assert pair.provenance["replaced"] == [1, 2, 3]
    assert pair.provenance["guides"][0]["object"] == "anchor"


async def test_positions_follow_the_ramp(run: Any) -> None:
    count = 1500
    drawn: Counter[int] = Counter()
    for index in range(count):
        [pair] = await run(APASI(), Sample(f"s{index}"), blind(), surveyed(), KNOWN)
        drawn[pair.provenance["replaced"][0]] += 1
    weights = position_weights(5, 1)
    for position, weight in enumerate(weights, 1):
        p = weight / sum(weights)
        assert abs(drawn[position] - count * p) < 3 * (count * p * (1 - p)) ** 0.5


async def test_several_sentences_and_never_the_same_thing_twice(run: Any, sample: Sample) -> None:
    text = " ".join(f"There is a boat number {word}." for word in "a b c d e f g h i j".split())
    for seed in range(10):
        [pair] = await run(APASI(), sample, blind(), surveyed(text), KNOWN, seed=seed)
        assert len(pair.provenance["replaced"]) == 2
        assert 0 not in pair.provenance["replaced"]
        assert len({used["object"] for used in pair.provenance["guides"]}) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (surveyed("A boat. A fish."), "too few sentences"),
        (surveyed(""), "too few sentences"),
        (surveyed(finish="length"), "cut off"),
        (surveyed("Nice. Fine. Good. Calm."), "no thing to inject"),
    ],
)
async def test_descriptions_that_give_no_pair(run: Any, sample: Sample, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoPair, match=reason):
        await run(APASI(), sample, blind(), row, KNOWN)


async def test_more_sentences_than_may_be_replaced(run: Any, sample: Sample) -> None:
    with pytest.raises(NoPair, match="too few sentences"):
        await run(APASI(injection_rate=1.0), sample, blind(), surveyed(), KNOWN)
    with pytest.raises(NoPair, match="too few sentences"):
        await run(APASI(min_injected=2), sample, blind(), surveyed(), KNOWN)


async def test_an_empty_completion_is_tried_again_and_then_given_up(run: Any, sample: Sample) -> None:
    lm = blind(" there.")
    with pytest.raises(NoPair, match="adds nothing"):
        await run(APASI(attempts=3), sample, lm, surveyed(), KNOWN)
    phrases = [chat.messages[-1].text for _, chat in lm.asked]
    assert len(phrases) == len(set(phrases)) == 3
    [pair] = await run(APASI(min_content_words=0), sample, blind(" there."), surveyed(), KNOWN)
    assert pair.rejected.text.count(" there.") >= 1


async def test_an_unchanged_text_is_no_pair(run: Any, sample: Sample) -> None:
    text = "A boat. A boat. There is a kite near the calm shore. A boat."
    known = Cooccurrence.learn([["boat", "anchor"]])
    method = APASI(openers=("There is {a}",), skip_sentences=2)
    with pytest.raises(NoPair, match="no thing"):
        await run(method, sample, blind(" near the calm shore."), surveyed(text), Cooccurrence.learn([["boat"]]))
    assert len(await run(method, sample, blind(" near the calm shore."), surveyed(text), known)) == 1


async def test_things_that_the_model_sees_are_not_injected(run: Any, sample: Sample) -> None:
    def choose(chat: Chat, options: object) -> tuple[float, float]:
        return (0.9, 0.1) if re.search("anchor|crab|kite|hat|dock", chat.prompt) else (0.1, 0.9)

    lm = ScriptedLM(lambda chat, *_: " of white stone near the shore.", choose=choose)
    made: list[Pair] = []
    for seed in range(30):
        with contextlib.suppress(NoPair):
            made += await run(APASI(check_absent=True, attempts=6), sample, lm, surveyed(), KNOWN, seed=seed)
    assert {pair.provenance["guides"][0]["object"] for pair in made} == {"lighthouse"}
    assert all(chat.media == sample.media for verb, chat in lm.asked if verb == "choose")


async def test_equal_seeds_give_equal_pairs(run: Any, sample: Sample) -> None:
    first = await run(APASI(), sample, blind(), surveyed(), KNOWN, seed=4)
    assert await run(APASI(), sample, blind(), surveyed(), KNOWN, seed=4) == first
