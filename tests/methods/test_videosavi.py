from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mmalign.errors import NoPair
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.videosavi import ASK_WHAT_WHY_HOW, VideoSAVi
from mmalign.text.prompts import ASK_SPATIAL, ASK_TEMPORAL, CRITIQUE, REVISE, TELL
from mmalign.types import Chat, Pair, Sample, Sampling

SPATIAL = ("Where is the fish at first?", "What colour is the fish now?", "Where is the boat at last?")
TEMPORAL = ("What happens first in the video?", "What happens after the fish moves?", "What happens last in it all?")
FIRST = "The fish moves up."
BETTER = "The fish moves to the left."
FAULT = "factual: The fish moves up."

Script = Callable[[str], str]


def model(
    *,
    spatial: str = "\n".join(SPATIAL),
    temporal: str = "\n".join(TEMPORAL),
    first: Script = lambda question: FIRST,
    critique: Script = lambda question: FAULT,
    revised: Script = lambda question: BETTER,
    prefers_last: float = 0.9,
) -> ScriptedLM:
    """A model whose answers are told by the question that they are about."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        prompt = chat.prompt
        question = prompt.partition("Question: ")[2].partition("\nAnswer:")[0]
        if "Compare the answer" in prompt:
            return critique(question)
        if "without these errors" in prompt:
            return revised(question)
        if prompt.startswith("Write"):
            return spatial if "where it is" in prompt else temporal
        return first(prompt)

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        is_first = chat.prompt.index(BETTER) < chat.prompt.index(FIRST)
        return (prefers_last, 1 - prefers_last) if is_first else (1 - prefers_last, prefers_last)

    return ScriptedLM(answer, choose=choose)


def pairs_of(made: list[Any]) -> list[Pair]:
    return [pair for pair in made if isinstance(pair, Pair)]


def reasons(made: list[Any]) -> Counter[str]:
    return Counter(str(drop) for drop in made if isinstance(drop, NoPair))


async def test_the_corrected_answer_is_preferred_to_the_first(run: Any, filmed: Sample) -> None:
    made = await run(VideoSAVi(), filmed, model())
    pairs = pairs_of(made)
    assert len(pairs) == len(made) == 6
    assert [pair.context.prompt for pair in pairs] == [*SPATIAL, *TEMPORAL]
    assert [pair.source for pair in pairs] == ["spatial"] * 3 + ["temporal"] * 3
    assert {(pair.chosen.text, pair.rejected.text) for pair in pairs} == {(BETTER, FIRST)}
    assert pairs[0].provenance["critique"] == FAULT
    assert pairs[0].provenance["error_kinds"] == ["factual"]
    assert pairs[0].provenance["length_ratio"] == 6 / 4
    json.dumps([dict(pair.provenance) for pair in pairs])


async def test_the_training_context_holds_the_clip_and_the_question_and_nothing_else(run: Any, filmed: Sample) -> None:
    for pair in pairs_of(await run(VideoSAVi(), filmed, model())):
        assert pair.context == filmed.ask(pair.context.prompt)
        assert pair.rejected_context is None
        rows = json.dumps(pair.context.to_rows())
        assert all(text not in rows for text in (FAULT, FIRST, BETTER, "error", "Compare"))


async def test_five_calls_about_the_clip_each_in_a_conversation_of_its_own(run: Any, filmed: Sample) -> None:
    lm = model(spatial=SPATIAL[0])
    await run(VideoSAVi(temporal=0), filmed, lm)
    question = SPATIAL[0]
    assert [chat.prompt for _, chat in lm.asked] == [
        ASK_SPATIAL.format(number="three"),
        question,
        CRITIQUE.format(question=question, answer=FIRST),
        REVISE.format(question=question, answer=FIRST, critique=FAULT),
    ]
    assert all(chat.media == filmed.media and len(chat.messages) == 1 for _, chat in lm.asked)


async def test_decoding(run: Any, filmed: Sample) -> None:
    used: dict[str, Sampling] = {}

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        used[chat.prompt.split()[0] if "Question:" not in chat.prompt else chat.prompt.rpartition("Write")[2]] = (
            sampling
        )
        return SPATIAL[0] if chat.prompt.startswith("Write") else FIRST

    await run(VideoSAVi(temporal=0), filmed, ScriptedLM(answer))
    drawn, greedy = Sampling(0.7, 0.9, max_new_tokens=512), Sampling(max_new_tokens=512)
    assert used["Write"] == used["Where"] == drawn
    assert [used[key] for key in used if key not in ("Write", "Where")] == [greedy, greedy]


async def test_numbers_of_questions(run: Any, filmed: Sample) -> None:
    lm = model()
    made = await run(VideoSAVi(spatial=2, temporal=1), filmed, lm)
    assert [chat.prompt for _, chat in lm.asked[:2]] == [
        ASK_SPATIAL.format(number="two"),
        ASK_TEMPORAL.format(number="one"),
    ]
    assert [pair.context.prompt for pair in pairs_of(made)] == [*SPATIAL[:2], TEMPORAL[0]]


async def test_the_same_question_of_both_kinds_is_asked_once(run: Any, filmed: Sample) -> None:
    lm = model(spatial=TEMPORAL[0].upper(), temporal="\n".join(TEMPORAL))
    made = pairs_of(await run(VideoSAVi(), filmed, lm))
    assert [pair.source for pair in made] == ["spatial", "temporal", "temporal"]


async def test_without_a_usable_question_there_is_no_pair(run: Any, filmed: Sample) -> None:
    with pytest.raises(NoPair, match="no usable question"):
        await run(VideoSAVi(), filmed, model(spatial="What is it?", temporal="A fish."))


async def test_a_prompt_of_the_data_takes_the_place_of_own_questions(run: Any, filmed: Sample) -> None:
    lm = model()
    [pair] = await run(VideoSAVi(), replace(filmed, prompt="What then?"), lm)
    assert (pair.context.prompt, pair.source) == ("What then?", "data")
    assert lm.asked[0][1].prompt == "What then?"


def only(question: str, text: str, otherwise: str) -> Script:
    return lambda asked: text if asked == question else otherwise


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"first": only(SPATIAL[1], " ", FIRST)}, "the first answer is empty"),
        ({"first": only(SPATIAL[1], "w " * 40, FIRST)}, "the first answer was cut off at the token limit"),
        ({"critique": only(SPATIAL[1], "No error.", FAULT)}, "the critique finds no error"),
        ({"critique": only(SPATIAL[1], "", FAULT)}, "the critique is empty"),
        ({"revised": only(SPATIAL[1], " the FISH moves up", BETTER)}, "both answers are equal"),
        ({"revised": only(SPATIAL[1], "Up.", BETTER)}, "the answers differ too much in length"),
        ({"revised": only(SPATIAL[1], "", BETTER)}, "the corrected answer is empty"),
        ({"revised": only(SPATIAL[1], "As the critique says, left.", BETTER)}, "the corrected answer speaks of itself"),
    ],
)
async def test_each_drop_is_counted_by_its_reason_and_the_other_questions_go_on(
    run: Any, filmed: Sample, script: dict[str, Script], reason: str
) -> None:
    made = await run(VideoSAVi(temporal=0, max_new_tokens=30), filmed, model(**script))
    assert reasons(made) == {reason: 1}
    assert [pair.context.prompt for pair in pairs_of(made)] == [SPATIAL[0], SPATIAL[2]]


async def test_what_is_dropped_early_is_asked_no_further(run: Any, filmed: Sample) -> None:
    lm = model(critique=only(SPATIAL[1], "No error.", FAULT), first=only(SPATIAL[0], "", FIRST))
    await run(VideoSAVi(temporal=0), filmed, lm)
    prompts = [chat.prompt for _, chat in lm.asked]
    assert sum("Compare the answer" in prompt for prompt in prompts) == 2
    assert sum("without these errors" in prompt for prompt in prompts) == 1


async def test_filters_can_be_switched_off(run: Any, filmed: Sample) -> None:
    said_nothing = model(critique=lambda question: "No error.")
    assert len(pairs_of(await run(VideoSAVi(drop_no_error=False), filmed, said_nothing))) == 6
    short = model(revised=lambda question: "Up.")
    assert len(pairs_of(await run(VideoSAVi(length_ratio=(0.0, 9.0)), filmed, short))) == 6
    talk = model(revised=lambda question: "As the critique says, left.")
    assert len(pairs_of(await run(VideoSAVi(drop_talk=False), filmed, talk))) == 6


async def test_an_answer_that_talks_of_itself_is_written_again_once(run: Any, filmed: Sample) -> None:
    given: list[tuple[Sampling, int]] = []

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if "without these errors" in chat.prompt:
            given.append((sampling, seed))
            return BETTER if sampling.temperature else f"The corrected answer: {BETTER}"
        if "Compare the answer" in chat.prompt:
            return FAULT
        return SPATIAL[0] if chat.prompt.startswith("Write") else FIRST

    [pair] = await run(VideoSAVi(temporal=0), filmed, ScriptedLM(answer))
    assert pair.chosen.text == BETTER
    assert [sampling.temperature for sampling, _ in given] == [0.0, 0.7]


@pytest.mark.parametrize(("p", "kept"), [(0.51, 3), (0.5, 0), (0.1, 0)])
async def test_the_pairwise_judge_keeps_what_wins_in_both_orders(run: Any, filmed: Sample, p: float, kept: int) -> None:
    made = await run(VideoSAVi(temporal=0, pairwise=True), filmed, model(prefers_last=p))
    pairs = pairs_of(made)
    assert len(pairs) == kept
    if kept:
        assert pairs[0].judgements[0].judge == "pairwise"
        assert pairs[0].judgements[0].value == pytest.approx(p)
    else:
        assert reasons(made) == {"the model does not prefer its corrected answer in both orders": 3}


async def test_without_the_pairwise_judge_nothing_is_chosen(run: Any, filmed: Sample) -> None:
    lm = model()
    await run(VideoSAVi(), filmed, lm)
    assert lm.calls["choose"] == 0


async def test_equal_seeds_give_equal_pairs_whatever_answers_first(run: Any, filmed: Sample) -> None:
    """Every step is asked about all questions before the next begins, so calls have the same numbers each time."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt.startswith("Write"):
            return "\n".join(SPATIAL if "where it is" in chat.prompt else TEMPORAL)
        if "Compare the answer" in chat.prompt:
            return FAULT
        return f"The fish moves {seed if sampling.temperature else 'on'}."

    async def rows(seed: int) -> list[tuple[str, str, str]]:
        made = pairs_of(await run(VideoSAVi(), filmed, ScriptedLM(answer), seed=seed))
        return [(pair.context.prompt, pair.chosen.text, pair.rejected.text) for pair in made]

    first = await rows(3)
    assert first == await rows(3) != await rows(4)
    assert len({rejected for _, _, rejected in first}) == 6


# The judge variant ---------------------------------------------------------------------------------------------------

THREE = "What does the fish do first?\nWhy does the boat turn red?\nHow does the video end then?"


def points(value: float) -> str:
    return json.dumps({"relevance": value, "accuracy": value, "temporal_grounding": value, "clarity": value})


def scorer(values: dict[float, float | str], written: str = THREE) -> ScriptedLM:
    """Answers with its temperature, and scores an answer by that; a text in place of a score cannot be read."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        prompt = chat.prompt
        if prompt == TELL[0]:
            return "A fish and a boat."
        if prompt.startswith("Caption: ") and "Write three questions" in prompt:
            return written
        if prompt.startswith("Caption: "):
            value = values[float(prompt.partition("drawn at ")[2].partition(" ")[0])]
            return value if isinstance(value, str) else points(value)
        return f"drawn at {sampling.temperature} "

    return ScriptedLM(answer)


RISING: dict[float, float | str] = {0.3: 5.0, 0.5: 4.0, 0.7: 3.0, 0.9: 2.0, 1.0: 1.0}


async def test_the_best_scored_of_five_temperatures_against_the_worst(run: Any, filmed: Sample) -> None:
    lm = scorer(RISING)
    made = await run(VideoSAVi(variant="judge"), filmed, lm)
    assert [pair.context.prompt for pair in made] == THREE.splitlines()
    assert {(pair.chosen.text, pair.rejected.text) for pair in made} == {("drawn at 0.3 ", "drawn at 1.0 ")}
    assert {(pair.gap, pair.source) for pair in made} == {(4.0, "judge")}
    assert [judgement.value for judgement in made[0].judgements] == [5.0, 1.0]
    assert made[0].provenance == {"caption": "A fish and a boat.", "scores": [5.0, 4.0, 3.0, 2.0, 1.0]}
    assert lm.asked[1][1].prompt == ASK_WHAT_WHY_HOW.format(caption="A fish and a boat.")
    assert made[0].context == filmed.ask(THREE.splitlines()[0])
    assert lm.calls["generate"] == 2 + 3 * 5 + 3 * 5


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ({**RISING, 0.5: 5.0, 0.9: 1.0}, ("0.3", "1.0")),  # ties: the cooler is better, the warmer worse
        ({**RISING, 0.3: "?", 1.0: "?"}, ("0.5", "0.9")),  # what cannot be read is no low score
        ({0.3: 4.0, 0.5: 4.0, 0.7: 3.0, 0.9: 4.0, 1.0: 4.0}, ("0.3", "0.7")),  # a gap of exactly 1
    ],
)
async def test_ties_gaps_and_unreadable_scores(
    run: Any, filmed: Sample, values: dict[float, float | str], ends: tuple[str, str]
) -> None:
    made = pairs_of(await run(VideoSAVi(variant="judge"), filmed, scorer(values)))
    assert {(p.chosen.text.split()[-1], p.rejected.text.split()[-1]) for p in made} == {ends}


@pytest.mark.parametrize(
    "values", [dict.fromkeys(RISING, 4.0), {**dict.fromkeys(RISING, 4.0), 0.7: 3.25}, dict.fromkeys(RISING, "?")]
)
async def test_answers_that_score_alike_give_no_pair(
    run: Any, filmed: Sample, values: dict[float, float | str]
) -> None:
    made = await run(VideoSAVi(variant="judge"), filmed, scorer(values))
    assert reasons(made) == {"the scores of the answers do not differ enough, or cannot be read": 3}
    assert len(made) == 3


async def test_the_judge_without_questions(run: Any, filmed: Sample) -> None:
    made = await run(VideoSAVi(variant="judge"), filmed, scorer(RISING, "No question."))
    assert reasons(made) == {"the model wrote no usable question": 1}


async def test_the_judge_takes_a_prompt_of_the_data(run: Any, filmed: Sample) -> None:
    lm = scorer(RISING)
    [pair] = await run(VideoSAVi(variant="judge"), replace(filmed, prompt="What then?"), lm)
    assert (pair.context.prompt, pair.chosen.text) == ("What then?", "drawn at 0.3 ")
    assert lm.calls["generate"] == 1 + 5 + 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spatial": 0, "temporal": 0}, "spatial and temporal"),
        ({"spatial": 11}, "spatial and temporal"),
        ({"temperatures": (0.5,)}, "temperatures and min_gap"),
        ({"min_gap": 0.0}, "temperatures and min_gap"),
    ],
)
def test_wrong_values_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoSAVi(**values)
