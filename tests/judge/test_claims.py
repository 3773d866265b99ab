from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign.judge.claims import EXTRACT, Claim, RuleClaims, SentenceClaims, WrittenClaims, existence, truth
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.text.objects import Vocabulary
from mmalign.types import Clip, MediaRef, Sampling

WORDS = Vocabulary.load()
RULE = RuleClaims(WORDS)
LOOKS = RuleClaims(WORDS, attributes=True)


def asked(claims: list[Claim]) -> list[tuple[str, str]]:
    return [(claim.question.removesuffix(" Answer yes or no."), claim.expected) for claim in claims]


def test_a_thing_named_twice_is_one_claim() -> None:
    text = "There is a dog on a mat. The DOG sleeps, two dogs bark."
    claims = RULE.read(text)
    assert asked(claims) == [("Is there a dog in the picture?", "yes"), ("Is there a mat in the picture?", "yes")]
    assert [text[claim.start : claim.end] for claim in claims] == ["dog", "mat"]


def test_a_denied_thing_is_asked_positively() -> None:
    claims = RULE.read("There are no people and a dog without a leash.")
    assert asked(claims) == [
        ("Is there a person in the picture?", "no"),
        ("Is there a dog in the picture?", "yes"),
        ("Is there a leash in the picture?", "no"),
    ]


def test_the_same_thing_affirmed_and_denied_are_two_claims() -> None:
    assert [c.expected for c in RULE.read("There is a dog. There is no dog.")] == ["yes", "no"]


def test_no_red_boat_leaves_open_whether_there_is_a_boat() -> None:
    assert RULE.read("There is no red boat.") == []
    assert asked(LOOKS.read("There is no red boat.")) == [("Is this true for the picture? There is a red boat.", "no")]


def test_questions_have_the_wording_that_the_embedded_model_knows() -> None:
    assert existence("apple", WORDS).question == "Is there an apple in the picture? Answer yes or no."
    assert existence("scissors", WORDS).question == "Is there a pair of scissors in the picture? Answer yes or no."


def test_attributes_before_and_after_the_noun() -> None:
    text = "There is a big red and white boat at the top. The old house is brown."
    claims = LOOKS.read(text)
    assert [(text[c.start : c.end], c.question.split("? ")[1]) for c in claims] == [
        ("boat", "Answer yes or no."),
        ("white boat", "There is a white boat. Answer yes or no."),
        ("red and white boat", "There is a red boat. Answer yes or no."),
        ("house", "Answer yes or no."),
        ("old house", "There is an old house. Answer yes or no."),
        ("house is brown", "There is a brown house. Answer yes or no."),
    ]


def test_sizes_are_never_asked() -> None:
    assert asked(LOOKS.read("A big small dog.")) == [("Is there a dog in the picture?", "yes")]


def test_the_limit_keeps_the_first_claims() -> None:
    assert [c.name for c in RuleClaims(WORDS, limit=2).read("a dog, a cat, a cow")] == ["dog", "cat"]


@given(st.text(alphabet=st.sampled_from("dog cat no red. boat,is\né"), max_size=80))
def test_no_claim_twice_and_all_in_the_text(text: str) -> None:
    claims = LOOKS.read(text)
    assert len({claim.key for claim in claims}) == len(claims)
    assert all(text[claim.start : claim.end] == claim.text for claim in claims)


def bound(lm: ScriptedLM) -> SampleLM:
    return SampleLM(lm, sample_id="s")


async def test_written_claims_come_from_the_text_alone() -> None:
    text = "A dog sits on a red mat. There are no people."
    lm = ScriptedLM(
        lambda chat, *_: (
            "Here are the facts:\n1. A dog sits on a mat\n- **The mat is red.**\n\n* There are no people\n2)"
        )
    )
    claims = await WrittenClaims().claims(text, bound(lm))
    [(verb, chat)] = lm.asked
    assert (verb, chat.media) == ("generate", ())
    assert chat.prompt == EXTRACT.replace("{text}", text)
    assert [(c.question, c.expected) for c in claims] == [
        ("Is this true for the picture? A dog sits on a mat. Answer yes or no.", "yes"),
        ("Is this true for the picture? The mat is red. Answer yes or no.", "yes"),
        ("Is this true for the picture? There are people. Answer yes or no.", "no"),
    ]
    assert [text[c.start : c.end] for c in claims] == ["A dog sits on a red mat."] * 2 + ["There are no people."]


async def test_a_denied_single_thing_gets_its_article_back() -> None:
    claims = WrittenClaims().parse(["There is no umbrella.", "there is not a dog"], "x")
    assert [c.question.split("? ")[1] for c in claims] == [
        "There is an umbrella. Answer yes or no.",
        "There is a dog. Answer yes or no.",
    ]
    assert {c.expected for c in claims} == {"no"}


async def test_a_fact_that_was_cut_off_is_not_asked() -> None:
    lm = ScriptedLM({"*": "A dog sits.\nA cat sleeps on"})
    claims = await WrittenClaims(sampling=Sampling(max_new_tokens=4)).claims("A dog. A cat.", bound(lm))
    assert [c.text for c in claims] == ["A dog sits."]


@pytest.mark.parametrize("nonsense", ["", "\n\n- \n1.\n", "Facts:", "None", "???"])
async def test_unreadable_lists_give_no_claims(nonsense: str) -> None:
    assert await WrittenClaims().claims("A dog.", bound(ScriptedLM({"*": nonsense}))) == []


@given(st.lists(st.text(max_size=30)), st.text(max_size=60))
def test_parsing_never_fails_and_places_lie_in_the_text(lines: list[str], text: str) -> None:
    for claim in WrittenClaims().parse(lines, text):
        assert 0 <= claim.start <= claim.end <= len(text)


async def test_the_extractor_sees_braces_as_they_are() -> None:
    lm = ScriptedLM({"*": "A dog is there."})
    await WrittenClaims().claims("{text} {0} {", bound(lm))
    assert lm.asked[0][1].prompt.count("{text} {0} {") == 1


CLIP = (Clip((Image.new("RGB", (4, 4)),), (0.0,), MediaRef("a.mp4", "video")),)
STORY = (
    "At the start there is a fish.  First the fish moves up.\nThen a red boat appears at the top. Finally the sun sets"
)


def test_sentences_are_asked_as_they_stand() -> None:
    claims = SentenceClaims().read(STORY, CLIP)
    assert [claim.question for claim in claims] == [
        f"Is this true for the video? {statement} Answer yes or no."
        for statement in (
            "At the start there is a fish.",
            "First the fish moves up.",
            "Then a red boat appears at the top.",
            "Finally the sun sets",
        )
    ]
    assert [STORY[claim.start : claim.end] for claim in claims] == [claim.text for claim in claims]
    assert {claim.expected for claim in claims} == {"yes"}
    assert claims[1].text == "First the fish moves up."


def test_sentences_that_state_nothing_are_passed_over() -> None:
    assert SentenceClaims().read("Here is what happens:\nWhat a video?\nWell. 3.\n- The fish moves up.") == [
        Claim("The fish moves up.", 47, 65, truth("The fish moves up."))
    ]
    assert SentenceClaims().read("") == []


def test_a_sentence_said_twice_is_one_claim_and_the_limit_keeps_the_first() -> None:
    text = "The fish moves up. The sun sets. the fish  moves up. A cat comes."
    assert [claim.text for claim in SentenceClaims().read(text)] == [
        "The fish moves up.",
        "The sun sets.",
        "A cat comes.",
    ]
    assert len(SentenceClaims(limit=1).read(text)) == 1


@given(st.text())
def test_sentence_claims_lie_in_the_text(text: str) -> None:
    for claim in SentenceClaims().read(text):
        assert text[claim.start : claim.end] == claim.text


def test_questions_about_clips_speak_of_a_video_but_statements_keep_their_words() -> None:
    assert existence("apple", WORDS, CLIP).question == "Is there an apple in the video? Answer yes or no."
    statement = "There is a picture on the wall."
    assert truth(statement, CLIP) == f"Is this true for the video? {statement} Answer yes or no."
    assert truth(statement) == f"Is this true for the picture? {statement} Answer yes or no."


async def test_every_extractor_speaks_of_the_media_it_is_told() -> None:
    lm = bound(ScriptedLM({"*": "There is a red dog."}))
    for extractor in (LOOKS, SentenceClaims(), WrittenClaims()):
        for media, word in (((), "picture"), (CLIP, "video")):
            claims = await extractor.claims("A red dog runs.", lm, media)
            assert claims
            assert all(word in claim.question for claim in claims)
