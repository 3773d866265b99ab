from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from mmalign.corrupt import apply
from mmalign.errors import MediaError, NoPair, SampleError
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods.rrpo import RRPO
from mmalign.text.prompts import ASK_SPATIAL, ASK_TEMPORAL, DIFFERENCES, REWRITE, TELL
from mmalign.types import Chat, Clip, Corruption, MediaRef, Picture, Sample, Sampling

QUESTION = "What does the man do in the video?"
TRUE = "The man opens the red door and walks out."
WRONG = "A woman closes the door."
REWRITTEN = "The man closes the red door and walks out."
CHOICE = "What is it?\nA. a cat\nB. a red dog"


def is_damaged(chat: Chat) -> bool:
    return any(medium.ref.corruptions for medium in chat.media)


def model(
    damaged: str = WRONG,
    *,
    clean: str = TRUE,
    differences: str = "The man closes it.",
    rewritten: str = REWRITTEN,
    p_same: float = 0.1,
) -> ScriptedLM:
    """Answers by what it is shown: the clean clip, the damaged one, or text alone."""

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt == REWRITE:
            return rewritten
        if chat.prompt.startswith("Question: "):
            return differences
        return damaged if is_damaged(chat) else clean

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        return (p_same, 1 - p_same) if chat.prompt.startswith("Question: ") else (0.9, 0.1)  # its own sentences: yes

    return ScriptedLM(answer, choose=choose)


def asked_of(sample: Sample, prompt: str = QUESTION, answer: object = TRUE) -> Sample:
    return replace(sample, prompt=prompt, meta={"answer": answer})


async def test_a_wrong_open_answer_is_rewritten_and_its_phrases_are_marked(run: Any, filmed: Sample) -> None:
    lm = model()
    [pair] = await run(RRPO(), asked_of(filmed), lm)
    assert (pair.chosen.text, pair.rejected.text) == (TRUE, REWRITTEN)
    assert [TRUE[s:e] for s, e in pair.chosen_spans] == ["opens"]
    assert [REWRITTEN[s:e] for s, e in pair.rejected_spans] == ["closes"]
    assert pair.source == "rewritten"
    [verdict] = pair.judgements
    assert (verdict.judge, verdict.value) == ("reference", 0.1)
    assert pair.provenance["question_by"] == pair.provenance["reference_by"] == "data"
    assert (pair.provenance["answer"], pair.provenance["differences"]) == (WRONG, "The man closes it.")
    json.dumps([verdict.to_row(), dict(pair.provenance)], allow_nan=False)
    assert [verb for verb, _ in lm.asked] == ["generate", "choose", "generate", "generate"]


async def test_the_rewriting_is_two_turns_without_media(run: Any, filmed: Sample) -> None:
    lm = model()
    await run(RRPO(), asked_of(filmed), lm)
    first, second = lm.asked[2][1], lm.asked[3][1]
    assert first.media == second.media == ()
    assert [turn.text for turn in second.messages] == [first.prompt, "The man closes it.", REWRITE]
    assert [turn.role for turn in second.messages] == ["user", "assistant", "user"]
    assert first.prompt == DIFFERENCES.format(question=QUESTION, reference=TRUE, answer=WRONG)


@pytest.mark.parametrize("seed", range(8))
async def test_what_the_record_says_is_what_reached_the_model(run: Any, filmed: Sample, seed: int) -> None:
    lm = model()
    [pair] = await run(RRPO(), asked_of(filmed), lm, seed=seed)
    [clean], [shown] = filmed.media, lm.asked[0][1].media
    assert isinstance(clean, Clip)
    assert isinstance(shown, Clip)
    [record] = pair.provenance["rejected_media"]
    again = clean
    for row in record["corruptions"]:
        again = apply(again, Corruption.from_row(row))
    assert [row["name"] for row in record["corruptions"]] == ["local_shuffle", "box_mask"]
    assert [image.tobytes() for image in shown.images] == [image.tobytes() for image in again.images]
    assert shown.times == clean.times
    # Every frame has lost the same box, and no frame has left its window of four.
    shuffle, box = (row["params"] for row in record["corruptions"])
    assert 0.25 <= box["area"] <= 0.5
    order = shuffle["frames"]
    assert sorted(order) == list(range(16)) != order
    assert all(place // 4 == at // 4 for at, place in enumerate(order))


async def test_a_box_that_hides_all_that_moves_is_no_reason_to_stop(run: Any) -> None:
    frames = []
    for at in range(8):
        frame = Image.new("RGB", (16, 16), (90, 90, 90))
        frame.putpixel((8, 8), (30 * at, 0, 0))
        frames.append(frame)
    clip = Clip(tuple(frames), tuple(map(float, range(8))), MediaRef("dot.mp4", "video"))
    for seed in range(10):
        assert await run(RRPO(area=(1.0, 1.0)), asked_of(Sample("dot", (clip,))), model(), seed=seed)


async def test_training_is_about_the_clean_clip(run: Any, filmed: Sample) -> None:
    [pair] = await run(RRPO(), asked_of(filmed), model())
    assert pair.context.media == filmed.media
    assert not is_damaged(pair.context)
    assert pair.rejected_context is None
    assert pair.context == asked_of(filmed).ask(QUESTION)
    for word in ("First answer", "differ", WRONG, REWRITTEN):
        assert word not in str(pair.context.to_rows())


async def test_settings_of_damage_and_decoding(run: Any, filmed: Sample) -> None:
    seen: list[Sampling] = []

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        seen.append(sampling)
        return "No."

    method = RRPO(area=(0.3, 0.3), window=2, temperature=0.9, max_new_tokens=7)
    [pair] = await run(method, asked_of(filmed, "Is it?", "Yes."), ScriptedLM(answer))
    assert seen == [Sampling(0.9, max_new_tokens=7)]
    shuffle, box = pair.provenance["rejected_media"][0]["corruptions"]
    assert box["params"]["area"] == 0.3
    assert shuffle["params"]["window"] == 2


async def test_other_damage_by_name(run: Any, filmed: Sample) -> None:
    [pair] = await run(RRPO(corruptions=("reverse",)), asked_of(filmed), model())
    assert [row["name"] for row in pair.provenance["rejected_media"][0]["corruptions"]] == ["reverse"]


@pytest.mark.parametrize(
    ("prompt", "reference", "wrong", "spans"),
    [
        (CHOICE, "A. a cat", "B. a red dog", (["A"], ["B"])),
        ("Is there a dog in it?", "No.", "Yes.", (["No"], ["Yes"])),
        ("Which colour is it?", "red", "blue", (["red"], ["blue"])),
    ],
)
async def test_short_forms_are_aligned_as_they_are(
    run: Any, filmed: Sample, prompt: str, reference: str, wrong: str, spans: tuple[list[str], list[str]]
) -> None:
    lm = model(wrong)
    [pair] = await run(RRPO(), asked_of(filmed, prompt, reference), lm)
    assert (pair.chosen.text, pair.rejected.text, pair.source) == (reference, wrong, "answer")
    assert [verb for verb, _ in lm.asked] == ["generate"]
    assert reference[slice(*pair.chosen_spans[0])] == spans[0][0]
    assert wrong[slice(*pair.rejected_spans[0])] == spans[1][0]


@pytest.mark.parametrize(
    ("prompt", "reference", "answer"),
    [(CHOICE, "A. a cat", "(A)"), ("Is it?", "No.", "no, never"), ("Which colour?", "red", "It is red.")],
)
async def test_a_right_answer_gives_no_pair(run: Any, filmed: Sample, prompt: str, reference: str, answer: str) -> None:
    with pytest.raises(NoPair, match="damaged clip is right"):
        await run(RRPO(), asked_of(filmed, prompt, reference), model(answer))


@pytest.mark.parametrize(("prompt", "reference"), [(CHOICE, "A. a cat"), ("Is it?", "No.")])
async def test_an_answer_that_cannot_be_read_gives_no_pair(
    run: Any, filmed: Sample, prompt: str, reference: str
) -> None:
    with pytest.raises(NoPair, match="cannot be read"):
        await run(RRPO(), asked_of(filmed, prompt, reference), model("Perhaps."))


@pytest.mark.parametrize(("p_same", "is_wrong"), [(0.25, True), (0.2500001, False)])
async def test_the_model_decides_of_open_answers_at_max_same(
    run: Any, filmed: Sample, p_same: float, is_wrong: bool
) -> None:
    method = RRPO(max_same=0.25)
    if is_wrong:
        assert len(await run(method, asked_of(filmed), model(p_same=p_same))) == 1
    else:
        with pytest.raises(NoPair, match="damaged clip is right"):
            await run(method, asked_of(filmed), model(p_same=p_same))


@pytest.mark.parametrize("none", ["None.", " none", "NONE", "*None*"])
async def test_without_a_key_difference_there_is_no_pair(run: Any, filmed: Sample, none: str) -> None:
    with pytest.raises(NoPair, match="no key thing"):
        await run(RRPO(), asked_of(filmed), model(differences=none))


@pytest.mark.parametrize(
    ("rewritten", "reason"),
    [
        (TRUE, "both texts are equal"),
        (TRUE.upper() + " ", "both texts are equal"),
        ("", "rewritten answer is empty"),
        ("word " * 40, "rewritten answer was cut off"),
    ],
)
async def test_rewritten_answers_of_no_use(run: Any, filmed: Sample, rewritten: str, reason: str) -> None:
    with pytest.raises(NoPair, match=reason):
        await run(RRPO(max_new_tokens=20), asked_of(filmed), model(rewritten=rewritten))


@pytest.mark.parametrize(("answer", "reason"), [(" ", "the answer is empty"), ("w " * 30, "the answer was cut off")])
async def test_answers_of_no_use(run: Any, filmed: Sample, answer: str, reason: str) -> None:
    with pytest.raises(NoPair, match=reason):
        await run(RRPO(max_new_tokens=20), asked_of(filmed), model(answer))


async def test_added_words_are_marked_with_the_word_before_them(run: Any, filmed: Sample) -> None:
    longer = "The man opens the red door and walks slowly out."
    [pair] = await run(RRPO(), asked_of(filmed), model(rewritten=longer))
    assert [TRUE[s:e] for s, e in pair.chosen_spans] == ["walks"]
    assert [longer[s:e] for s, e in pair.rejected_spans] == ["walks slowly"]


async def test_texts_that_differ_on_one_side_only_give_no_pair(run: Any, filmed: Sample) -> None:
    with pytest.raises(NoPair, match="no phrase differs on both sides"):
        await run(RRPO(rewrite="never"), asked_of(filmed, "What is written there?", "?!"), model("?! Zap"))


async def test_without_rewriting_the_wrong_answer_itself_is_aligned(run: Any, filmed: Sample) -> None:
    lm = model("The man opens the door and falls down.")
    [pair] = await run(RRPO(rewrite="never"), asked_of(filmed), lm)
    assert pair.source == "answer"
    assert [TRUE[s:e] for s, e in pair.chosen_spans] == ["the red", "walks out"]
    assert [pair.rejected.text[s:e] for s, e in pair.rejected_spans] == ["the", "falls down"]
    assert [verb for verb, _ in lm.asked] == ["generate", "choose"]


@pytest.mark.parametrize("seed", range(6))
async def test_on_its_own_the_model_is_held_to_what_it_says_of_the_clean_clip(
    run: Any, filmed: Sample, seed: int
) -> None:
    lm = model()
    [pair] = await run(RRPO(), filmed, lm, seed=seed)
    first, second = [chat for verb, chat in lm.asked if verb == "generate"][:2]
    assert pair.context.prompt in TELL
    assert first.prompt == second.prompt == pair.context.prompt
    assert (is_damaged(first), is_damaged(second)) == (False, True)
    assert pair.chosen.text == TRUE
    assert (pair.provenance["question_by"], pair.provenance["reference_by"]) == ("pool", "model, clean clip")


async def test_the_own_reference_is_greedy_and_whole(run: Any, filmed: Sample) -> None:
    seen: list[tuple[bool, float]] = []

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        seen.append((is_damaged(chat), sampling.temperature))
        return "word " * 40

    with pytest.raises(NoPair, match="reference was cut off"):
        await run(RRPO(max_new_tokens=20), filmed, ScriptedLM(answer))
    assert seen == [(False, 0.0)]


async def test_a_prompt_without_an_answer_is_answered_by_the_model(run: Any, filmed: Sample) -> None:
    [pair] = await run(RRPO(), replace(filmed, prompt=QUESTION), model())
    assert pair.context.prompt == QUESTION
    assert (pair.provenance["question_by"], pair.provenance["reference_by"]) == ("data", "model, clean clip")


@pytest.mark.parametrize("seed", range(6))
async def test_the_model_can_ask_itself(run: Any, filmed: Sample, seed: int) -> None:
    own = ["What does the man do first?", "Where is the red door now?"]

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if chat.prompt.startswith("Write three questions"):
            return f"1. {own[0]}\n2. {own[1]}\nA statement."
        return WRONG if is_damaged(chat) else TRUE

    lm = ScriptedLM(answer, choose=lambda chat, options: (0.1, 0.9))
    [pair] = await run(RRPO(questions="asked", rewrite="never", own_references=0), filmed, lm, seed=seed)
    assert lm.asked[0][1].prompt in [ask.format(number="three") for ask in (ASK_SPATIAL, ASK_TEMPORAL)]
    assert pair.context.prompt in own
    assert pair.provenance["question_by"] == "model"
    with pytest.raises(NoPair, match="no usable question"):
        await run(RRPO(questions="asked"), filmed, ScriptedLM({"*": "No idea."}))


async def test_only_meta_answer_is_read_of_what_the_data_know(run: Any, filmed: Sample) -> None:
    secret = {"events": "Zanzibar", "caption": "Zanzibar"}
    lm = model()
    [pair] = await run(RRPO(), replace(filmed, meta=secret), lm)
    assert "Zanzibar" not in str([chat.to_rows() for _, chat in lm.asked])
    assert "Zanzibar" not in str(pair.provenance)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("s", prompt=QUESTION, meta={"answer": ""}), "meta.answer is ''"),
        (Sample("s", prompt=QUESTION, meta={"answer": 3}), "meta.answer is 3; it must be the reference answer as text"),
        (Sample("s", meta={"answer": TRUE}), "an answer under meta but no prompt"),
    ],
)
async def test_wrong_samples_are_named(run: Any, filmed: Sample, sample: Sample, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        await run(RRPO(), replace(sample, media=filmed.media), model())


async def test_equal_seeds_give_equal_pairs(run: Any, filmed: Sample) -> None:
    def rows(pairs: list[Any]) -> str:
        return json.dumps([[p.context.to_rows(), p.rejected.text, dict(p.provenance)] for p in pairs])

    first, again, other = [rows(await run(RRPO(), filmed, model(), seed=seed)) for seed in (3, 3, 4)]
    assert first == again != other


async def test_a_clip_that_stands_still_is_the_samples_error(
    run: Any, make_clip: Callable[[int], Clip], picture: Picture
) -> None:
    still = Clip((picture.image,) * 8, tuple(map(float, range(8))), MediaRef("still.mp4", "video"))
    with pytest.raises(MediaError, match=r"still\.mp4"):
        await run(RRPO(), Sample("still", (still,)), model())


def standing_by(denied: str, answers: list[str]) -> ScriptedLM:
    """Gives `answers` in turn from the clean clip and denies every statement that holds `denied`."""
    left = iter(answers)

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        return WRONG if is_damaged(chat) else next(left)

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        return (0.1, 0.9) if denied in chat.prompt or chat.prompt.startswith("Question: ") else (0.9, 0.1)

    return ScriptedLM(answer, choose=choose)


async def test_an_own_reference_is_one_whose_every_sentence_the_model_affirms(run: Any, filmed: Sample) -> None:
    lm = standing_by("a dog", ["The man walks. There is a dog.", "The man sits down. He sleeps."])
    [pair] = await run(RRPO(rewrite="never"), filmed, lm)
    assert pair.chosen.text == "The man sits down. He sleeps."
    asked = [chat.prompt for verb, chat in lm.asked if verb == "choose"][:4]
    assert [text.rpartition("? ")[2] for text in asked] != asked  # statements, each in a conversation of its own
    assert sum("There is a dog." in text for text in asked) == 1


async def test_without_a_reference_that_the_model_stands_by_there_is_no_pair(run: Any, filmed: Sample) -> None:
    lm = standing_by("a dog", ["The man walks. There is a dog."] * 2)
    with pytest.raises(NoPair, match="affirms none of its own references"):
        await run(RRPO(rewrite="never", own_references=2), filmed, lm)


async def test_an_answer_that_states_nothing_is_no_reference(run: Any, filmed: Sample) -> None:
    [pair] = await run(RRPO(rewrite="never"), filmed, standing_by("a dog", ["Why?", "The man sits down."]))
    assert pair.chosen.text == "The man sits down."
    with pytest.raises(NoPair, match="affirms none of its own references"):
        await run(RRPO(rewrite="never", own_references=2), filmed, standing_by("a dog", ["Why?", "Who?"]))


async def test_the_greedy_answer_can_be_taken_unasked(run: Any, filmed: Sample) -> None:
    lm = standing_by("a dog", ["The man walks. There is a dog."])
    [pair] = await run(RRPO(rewrite="never", own_references=0), filmed, lm)
    assert pair.chosen.text == "The man walks. There is a dog."


async def test_an_open_answer_can_be_judged_by_looking_at_the_clean_clip(run: Any, filmed: Sample) -> None:
    def choose(chat: Chat, options: object) -> tuple[float, float]:
        assert not is_damaged(chat)
        return (0.2, 0.8) if "closes" in chat.prompt else (0.9, 0.1)

    method = RRPO(rewrite="never", open_judge="clip")
    told = {True: WRONG, False: TRUE}
    lm = ScriptedLM(lambda chat, sampling, seed: told[is_damaged(chat)], choose=choose)
    [pair] = await run(method, filmed, lm)
    [verdict] = pair.judgements
    assert (verdict.judge, verdict.value) == ("sentences", 0.2)
    assert verdict.raw["sentences"] == [{"text": WRONG, "p_yes": 0.2}]
    told[True] = "A man opens it."
    with pytest.raises(NoPair, match="is right"):
        await run(method, filmed, lm)
    told[True] = "Why?"
    with pytest.raises(NoPair, match="cannot be read"):
        await run(method, filmed, lm)
