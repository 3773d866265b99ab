from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import NoPair, SampleError
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.self_consistency import SelfConsistency
from mmalign.pairs import PairRow
from mmalign.text.prompts import DETAIL, LIST_OBJECTS
from mmalign.types import Chat, Pair, Sample, Sampling

SEEN = ("dog", "cat", "mat")
GOOD = "There is a dog. There is a cat on a mat."
BAD = "There is a dog. There is a kite and a boat."
SHORT = "There is a dog."


def believes(things: Sequence[str], p_yes: float = 0.95) -> Callable[..., tuple[float, float]]:
    """Yes to a question that names one of the things, no to any other."""

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        p = p_yes if any(f" {thing} " in chat.prompt for thing in things) else 1 - p_yes
        return p, 1 - p

    return choose


def writes(*answers: str, listing: str = "A dog, a cat and a mat.", greedy: str = "") -> ScriptedLM:
    """Long answers in turn, the list on request; sees a dog, a cat and a mat."""
    left = iter(answers)

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt == LIST_OBJECTS:
            return listing
        return greedy if sampling.temperature == 0 else next(left)

    return ScriptedLM(answer, choose=believes(SEEN))


async def test_the_most_agreed_answer_is_preferred_to_the_least(run: Any, sample: Sample) -> None:
    lm = writes(SHORT, BAD, GOOD)
    [pair] = await run(SelfConsistency(samples=3), sample, lm)
    assert (pair.chosen.text, pair.rejected.text) == (GOOD, BAD)
    assert pair.gap == 4.0  # kite and boat denied, cat and mat left out
    assert [BAD[s:e] for s, e in pair.rejected_spans] == ["kite", "boat"]
    chosen, rejected = pair.judgements
    assert (chosen.value, rejected.value) == (0.0, -4.0)
    assert "denied by the model: 'kite' P(yes)=0.05" in rejected.reason
    assert pair.provenance["scores"] == [-2.0, -4.0, 0.0]
    assert pair.context.prompt in DETAIL
    assert pair.context.media == sample.media
    json.dumps([j.to_row() for j in pair.judgements] + [dict(pair.provenance)], allow_nan=False)


async def test_the_long_answers_never_reach_a_question(run: Any, sample: Sample) -> None:
    lm = writes("Zanzibar has a dog.", "Zanzibar has a kite.")
    await run(SelfConsistency(samples=2, miss_penalty=0.0), sample, lm)
    written = [chat.prompt for verb, chat in lm.asked if verb == "generate"]
    questions = [chat for verb, chat in lm.asked if verb == "choose"]
    assert set(written) <= set(DETAIL)
    assert len(questions) == 4  # dog, kite, two absent things
    for chat in questions:
        assert "Zanzibar" not in str(chat.to_rows())
        assert chat.media == sample.media
        assert len(chat.messages) == 1


async def test_the_prompt_of_the_data_is_used(run: Any, sample: Sample) -> None:
    lm = writes(GOOD, BAD)
    [pair] = await run(SelfConsistency(samples=2), replace(sample, prompt="What is here?"), lm)
    assert pair.context.prompt == "What is here?"


async def test_the_samples_are_drawn_with_one_setting_and_different_seeds(run: Any, sample: Sample) -> None:
    seen: list[tuple[Sampling, int]] = []

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt == LIST_OBJECTS:
            return "A dog."
        seen.append((sampling, seed))
        return (GOOD, BAD)[len(seen) % 2]

    await run(SelfConsistency(temperature=0.9, top_p=0.8), sample, ScriptedLM(answer, choose=believes(SEEN)))
    assert {sampling for sampling, _ in seen} == {Sampling(0.9, 0.8, max_new_tokens=512)}
    assert len({seed for _, seed in seen}) == len(seen) == 8


async def test_the_greedy_answer_can_take_part(run: Any, sample: Sample) -> None:
    lm = writes(BAD, greedy=GOOD)
    [pair] = await run(SelfConsistency(samples=1, include_greedy=True), sample, lm)
    assert pair.chosen.text == GOOD


async def test_equal_and_unfinished_answers_do_not_count(run: Any, sample: Sample) -> None:
    with pytest.raises(NoPair, match="two different whole"):
        await run(SelfConsistency(samples=3), sample, writes(GOOD, f" {GOOD}\n", GOOD.replace(" ", "  ")))
    with pytest.raises(NoPair, match="two different whole"):
        await run(SelfConsistency(samples=2, max_new_tokens=5), sample, writes("A dog.", GOOD))
    with pytest.raises(NoPair, match="two different whole"):
        await run(SelfConsistency(samples=2), sample, writes(GOOD, "  "))


@pytest.mark.parametrize("answers", [(GOOD, "A dog, a cat, a mat."), (BAD, "A dog, a kite, a boat.")])
async def test_ties_give_no_pair(run: Any, sample: Sample, answers: tuple[str, str]) -> None:
    with pytest.raises(NoPair, match="do not differ enough"):
        await run(SelfConsistency(samples=2), sample, writes(*answers))


async def test_an_answer_without_judged_claims_is_never_used(run: Any, sample: Sample) -> None:
    method = SelfConsistency(samples=3, miss_penalty=0.0, coverage=0.0)
    [pair] = await run(method, sample, writes("It is a nice place.", BAD, GOOD))
    assert (pair.chosen.text, pair.rejected.text) == (GOOD, BAD)
    assert pair.provenance["scores"][0] is None


async def test_a_sample_where_nothing_can_be_judged_is_an_error(run: Any, sample: Sample) -> None:
    with pytest.raises(SampleError, match="no claim of any answer could be judged"):
        await run(SelfConsistency(samples=2), sample, writes("So nice.", "Very nice."))
    mute = ScriptedLM({"*": (GOOD, BAD)}, choose=lambda chat, options: (0.02, 0.02))
    with pytest.raises(SampleError, match="no claim of any answer could be judged"):
        await run(SelfConsistency(samples=8), sample, mute)


async def test_brevity_does_not_win_without_the_list(run: Any, sample: Sample) -> None:
    """SHORT has no denied claim, as GOOD; BAD has two. The coverage guard leaves only GOOD as chosen."""
    long = "A dog, a cat, a mat and a kite."
    method = SelfConsistency(samples=3, miss_penalty=0.0)
    [pair] = await run(method, sample, writes(SHORT, long, GOOD))
    assert (pair.chosen.text, pair.rejected.text) == (GOOD, long)
    with pytest.raises(NoPair):  # nothing but the short one is better, and it covers too little
        await run(method, sample, writes(SHORT, long, long + " A cat."))
    [unguarded] = await run(replace(method, coverage=0.0), sample, writes(SHORT, long, long + " A cat."))
    assert unguarded.chosen.text == SHORT


async def test_leaving_things_out_costs_the_penalty(run: Any, sample: Sample) -> None:
    method = SelfConsistency(samples=2, coverage=0.0, score="min_logp", miss_penalty=1.5)
    [pair] = await run(method, sample, writes(SHORT, GOOD))
    assert (pair.chosen.text, pair.rejected.text) == (GOOD, SHORT)
    assert pair.gap == pytest.approx(3.0)
    assert pair.judgements[1].reason == "leaves out what the model lists: cat, mat"


async def test_a_model_that_says_yes_to_everything_is_no_judge(run: Any, sample: Sample) -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog.", "*": (GOOD, BAD)}, choose=lambda chat, options: (0.9, 0.1))
    with pytest.raises(NoPair, match="also says yes to things"):
        await run(SelfConsistency(), sample, lm)


async def test_absent_things_are_known_ones_that_nothing_suggests(run: Any, sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("dog\nkite\nsun\nmat\nmoon\ncat\nboat\n", encoding="utf-8")
    lm = writes(GOOD, BAD)
    await run(SelfConsistency(samples=2, vocabulary=str(path)), sample, lm)
    questions = [chat.prompt.split(" in the")[0] for verb, chat in lm.asked if verb == "choose"]
    assert sorted(questions[-2:]) == ["Is there a moon", "Is there a sun"]
    none = writes(GOOD, BAD)
    await run(SelfConsistency(samples=2, absent_questions=0), sample, none)
    assert none.calls["choose"] == 5


async def test_all_pairs_with_a_gap_at_most_two_drawn_by_the_seed(run: Any, sample: Sample) -> None:
    answers = (GOOD, SHORT, BAD, "A dog, a cat.")
    method = SelfConsistency(samples=4, pairing="all", coverage=0.0)
    made: dict[int, list[Pair]] = {seed: await run(method, sample, writes(*answers), seed=seed) for seed in range(12)}
    assert all(len(pairs) == 2 for pairs in made.values())
    assert all(pair.gap is not None and pair.gap >= 1 for pairs in made.values() for pair in pairs)
    assert len({tuple((p.chosen.text, p.rejected.text) for p in pairs) for pairs in made.values()}) > 1
    again = await run(method, sample, writes(*answers), seed=5)
    assert [p.chosen.text for p in again] == [p.chosen.text for p in made[5]]
    every = await run(replace(method, max_pairs=99), sample, writes(*answers))
    assert len(every) == 6  # scores 0, -2, -4, -1


async def test_the_gap_can_be_set(run: Any, sample: Sample) -> None:
    with pytest.raises(NoPair, match="do not differ enough"):
        await run(SelfConsistency(samples=2, min_gap=5.0), sample, writes(GOOD, BAD))
    [pair] = await run(SelfConsistency(samples=2, min_gap=4.0), sample, writes(GOOD, BAD))
    assert pair.gap == 4.0


async def test_claims_can_be_listed_by_the_model_without_the_picture(run: Any, sample: Sample, tmp_path: Path) -> None:
    long = iter((GOOD, BAD))

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt == LIST_OBJECTS:
            return "A dog."
        if "Facts:" in chat.prompt:
            assert chat.media == ()
            return (
                "1. There is a dog\n2. There is a cat"
                if GOOD in chat.prompt
                else "- There is a kite\n- A boat is there"
            )
        return next(long)

    lm = ScriptedLM(answer, choose=believes(("dog", "cat.")))
    path = tmp_path / "words.txt"
    path.write_text("dog\ncat\nmat\nkite\nboat\nsun\n", encoding="utf-8")
    [pair] = await run(SelfConsistency(samples=2, extractor="llm", vocabulary=str(path)), sample, lm)
    assert pair.chosen.text == GOOD
    asked = [chat.prompt for verb, chat in lm.asked if verb == "choose"]
    assert asked[-1] == "Is there a sun in the picture? Answer yes or no."  # the only thing that no text names
    assert "Is this true for the picture? There is a cat. Answer yes or no." in asked


async def test_attributes_are_checked_on_request(run: Any, sample: Sample) -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog.", "*": ("A red dog.", "A blue dog.")}, choose=believes(("a red", "a dog")))
    [pair] = await run(SelfConsistency(attributes=True, coverage=0.0), sample, lm)
    assert (pair.chosen.text, pair.rejected.text) == ("A red dog.", "A blue dog.")


TOLD = "First the fish moves up. Then a red boat appears at the top. Finally the sun disappears."
MISTOLD = "First the fish moves down. Then a red boat appears at the top. Finally the fish moves up."


def watches(*answers: str) -> ScriptedLM:
    """Long answers in turn about a clip; agrees with the sentences of `TOLD` only."""
    left = iter(answers)

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        return "A fish, a boat and a sun." if chat.prompt == "What things are in the video?" else next(left)

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        statement = chat.prompt.removeprefix("Is this true for the video? ").removesuffix(" Answer yes or no.")
        seen = statement in TOLD or any(f" {thing} " in chat.prompt for thing in ("fish in", "boat in", "sun in"))
        return (0.95, 0.05) if seen else (0.05, 0.95)

    return ScriptedLM(answer, choose=choose)


async def test_sentences_about_events_are_checked_on_clips(run: Any, filmed: Sample) -> None:
    lm = watches(MISTOLD, TOLD)
    method = SelfConsistency(samples=2, extractor="sentences", vocabulary="drawn")
    [pair] = await run(method, filmed, lm)
    assert (pair.chosen.text, pair.rejected.text, pair.gap) == (TOLD, MISTOLD, 3.0)  # two sentences, and the sun
    assert [MISTOLD[s:e] for s, e in pair.rejected_spans] == [
        "First the fish moves down.",
        "Finally the fish moves up.",
    ]
    assert "denied by the model: 'First the fish moves down.'" in pair.judgements[1].reason
    asked = [chat.prompt for verb, chat in lm.asked if verb == "choose"]
    assert "Is this true for the video? First the fish moves up. Answer yes or no." in asked
    assert all("picture" not in chat.prompt for _, chat in lm.asked)
    assert all(chat.media == filmed.media for _, chat in lm.asked)
    assert pair.context.prompt.replace("video", "picture") in DETAIL


def rows(*lengths: tuple[int, int]) -> list[PairRow]:
    return [
        PairRow(id=str(i), sample_id=str(i), method="m", context=[], chosen="w " * c, rejected="w " * r)
        for i, (c, r) in enumerate(lengths)
    ]


def test_the_length_guard_is_a_choice() -> None:
    table = rows((10, 60), (50, 48), (40, 44))
    assert [row.id for row in SelfConsistency().select(table)] == ["1", "2"]
    assert SelfConsistency(length_guard=False).select(table) == table
