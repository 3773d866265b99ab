from __future__ import annotations

import pytest
from PIL import Image

from mmalign.errors import SampleError
from mmalign.judge.claims import RuleClaims, WrittenClaims
from mmalign.judge.consistency import ConsistencyJudge, own_list, sees
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.text.objects import Vocabulary
from mmalign.text.prompts import LIST_OBJECTS
from mmalign.types import Chat, Clip, MediaRef, Picture, Sample

WORDS = Vocabulary.load()
PICTURE = Picture(Image.new("RGB", (4, 4)), MediaRef("a.png"))
SAMPLE = Sample("s", (PICTURE,), prompt="Describe.", system="You see.")


def believes(**p_yes: float):  # type: ignore[no-untyped-def]
    """A `choose` script: P(yes) for the thing in the question, .02 for anything else; all mass on yes and no."""

    def choose(chat: Chat, options: object) -> tuple[float, float]:
        p = next((p for thing, p in p_yes.items() if f" {thing} " in chat.prompt), 0.02)
        return p, 1 - p

    return choose


def judge(**settings: object) -> ConsistencyJudge:
    return ConsistencyJudge(RuleClaims(WORDS), WORDS, **settings)  # type: ignore[arg-type]


async def test_one_question_is_asked_once_alone_and_with_the_picture() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog and a cat."}, choose=believes(dog=0.9, cat=0.8))
    texts = ["There is a dog and a kite. The dog runs.", "A dog, a cat."]
    assessed = await judge().assess(SAMPLE, texts, SampleLM(lm, sample_id="s"))
    questions = [chat for verb, chat in lm.asked if verb == "choose"]
    assert sorted(chat.prompt for chat in questions) == sorted(
        f"Is there a {thing} in the picture? Answer yes or no." for thing in ("dog", "kite", "cat")
    )
    for chat in questions:
        assert chat.media == (PICTURE,)
        assert [turn.role for turn in chat.messages] == ["system", "user"]
    assert [a.score for a in assessed] == [-2.0, 0.0]  # the kite, and the cat left out
    assert assessed[0].missing == ("cat",)
    assert assessed[0].num_consistent == 1
    assert [texts[0][start:end] for start, end in assessed[0].denied] == ["kite"]


@pytest.mark.parametrize("written", [False, True])
async def test_no_judge_prompt_holds_any_part_of_a_long_answer(written: bool) -> None:
    secret = "Zanzibar quicksilver umbrella parade under a kite"

    def answer(chat: Chat, *_: object) -> str:
        return "A kite." if chat.prompt == LIST_OBJECTS else "A kite is there.\nAn umbrella is there."

    lm = ScriptedLM(answer)
    extractor = WrittenClaims() if written else RuleClaims(WORDS)
    await ConsistencyJudge(extractor, WORDS).assess(SAMPLE, [secret], SampleLM(lm, sample_id="s"))
    seen = [chat for verb, chat in lm.asked if verb == "choose" or chat.media]
    assert len(seen) >= 2
    text = " ".join(turn.text for chat in seen for turn in chat.messages)
    assert "Zanzibar" not in text
    assert "parade" not in text


async def test_a_listed_thing_that_the_model_denies_is_not_missed() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog, a cat, no cow."}, choose=believes(dog=0.9, cow=0.9))
    [assessed] = await judge().assess(SAMPLE, ["A bird and a dog."], SampleLM(lm, sample_id="s"))
    assert assessed.missing == ()
    assert assessed.score == -1.0


async def test_without_a_penalty_no_list_is_asked() -> None:
    lm = ScriptedLM({}, choose=believes(dog=0.9))
    [assessed] = await judge(miss_penalty=0.0).assess(SAMPLE, ["A dog."], SampleLM(lm, sample_id="s"))
    assert lm.calls == {"choose": 1}
    assert assessed.score == 0.0


async def test_the_penalty_and_the_worst_claim_make_the_measured_score() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog, a cat."}, choose=believes(dog=0.9, cat=0.9, kite=0.25))
    [assessed] = await judge(kind="min_logp", miss_penalty=1.5).assess(
        SAMPLE, ["A dog and a kite."], SampleLM(lm, sample_id="s")
    )
    assert assessed.score == pytest.approx(-1.386294 - 1.5)


async def test_the_judgement_keeps_raw_numbers_and_the_reason() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "A dog."}, choose=believes(dog=0.9, kite=0.03))
    [assessed] = await judge().assess(SAMPLE, ["A dog and no cat; a kite."], SampleLM(lm, sample_id="s"))
    row = assessed.judgement("rejected").to_row()
    assert row["reason"] == "denied by the model: 'kite' P(yes)=0.03"
    assert (row["judge"], row["value"], row["raw"]["side"]) == ("consistency", -1.0, "rejected")
    assert [(c["expected"], c["p_yes"], c["label"]) for c in row["raw"]["claims"]] == [
        ("yes", 0.9, "consistent"),
        ("no", 0.02, "consistent"),
        ("yes", 0.03, "inconsistent"),
    ]


async def test_unjudged_text_has_no_score() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "Nothing."}, choose=lambda chat, options: (0.04, 0.01))
    assessed = await judge().assess(SAMPLE, ["A dog.", "It is nice."], SampleLM(lm, sample_id="s"))
    assert [a.score for a in assessed] == [None, None]
    assert assessed[0].verdicts[0].label == "invalid"


async def test_own_list_reads_names_once_and_not_what_is_denied() -> None:
    lm = ScriptedLM({LIST_OBJECTS: "Two dogs, a cat, the dog, and no birds."})
    assert await own_list(SAMPLE, WORDS, SampleLM(lm, sample_id="s")) == ("dog", "cat")


@pytest.mark.parametrize(("p_yes", "says"), [(0.9, True), (0.1, False)])
async def test_sees(p_yes: float, says: bool) -> None:
    lm = ScriptedLM({}, choose=believes(dog=p_yes))
    assert await sees(SAMPLE, WORDS, SampleLM(lm, sample_id="s"), "dog") is says


@pytest.mark.parametrize(("cat", "biased"), [(0.9, True), (0.1, False)])
async def test_a_yes_sayer_affirms_all_absent_things(cat: float, biased: bool) -> None:
    lm = ScriptedLM({}, choose=believes(dog=0.9, cat=cat))
    assert await judge().says_yes_to_absent(SAMPLE, ["dog", "cat"], SampleLM(lm, sample_id="s")) is biased
    assert not await judge().says_yes_to_absent(SAMPLE, [], SampleLM(lm, sample_id="s"))


async def test_a_failing_question_is_the_samples_error() -> None:
    lm = ScriptedLM({LIST_OBJECTS: ""}, fail=lambda verb, chat: SampleError("too long") if verb == "choose" else None)
    with pytest.raises(SampleError, match="too long"):
        await judge().assess(SAMPLE, ["A dog."], SampleLM(lm, sample_id="s"))


async def test_about_a_clip_every_question_speaks_of_a_video() -> None:
    clip = Clip((Image.new("RGB", (4, 4)),) * 2, (0.0, 0.5), MediaRef("a.mp4", "video"))
    sample = Sample("s", (clip,))
    lm = ScriptedLM({"What things are in the video?": "A dog and a cat."}, choose=believes(dog=0.9, cat=0.8))
    bound = SampleLM(lm, sample_id="s")
    [assessment] = await judge().assess(sample, ["A dog and a kite."], bound)
    assert (assessment.score, assessment.missing) == (-2.0, ("cat",))
    assert await sees(sample, WORDS, bound, "dog")
    assert not await judge().says_yes_to_absent(sample, ["boat"], bound)
    assert all(chat.media == (clip,) and "picture" not in chat.prompt for _, chat in lm.asked)
    assert "in the video?" in str(assessment.judgement("chosen").raw)
