import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.tiny import KINDS, happenings, questions, scenes
from mmalign.tiny.clips import clips

PICTURE_PAIRS = (questions.existence, questions.statements, questions.caption_judging, questions.relation)
CLIP_PAIRS = (
    happenings.existence,
    happenings.truth,
    happenings.told_truth,
    happenings.scenery_truth,
    happenings.before_after,
    happenings.caption_judging,
    happenings.same_meaning,
)


@pytest.mark.parametrize("asker", PICTURE_PAIRS)
def test_yes_and_no_are_balanced_for_each_scene(asker):
    asked = [asker(scene, random.Random(at)) for at, scene in enumerate(scenes(200, 0, "dev"))]
    assert sum(map(bool, asked)) > 100
    assert all(sorted(turn.answer for turn in turns) == ["No.", "Yes."] for turns in asked if turns)


@pytest.mark.parametrize("asker", CLIP_PAIRS)
def test_yes_and_no_are_balanced_for_each_clip(asker):
    for at, clip in enumerate(clips(100, 0, "dev")):
        assert sorted(turn.answer for turn in asker(clip, random.Random(at))) == ["No.", "Yes."]


def test_no_kind_gives_the_answer_away():
    said = {kind: Counter() for kind in KINDS}
    for at, scene in enumerate(scenes(4000, 0, "dev")):
        for turn in questions.existence(scene, random.Random(at)):
            kind = next(kind for kind in KINDS if kind in turn.ask)
            said[kind][turn.answer] += 1
    shares = [count["Yes."] / count.total() for count in said.values()]
    assert all(0.3 < share < 0.7 for share in shares)


def test_existence_is_true():
    for at, scene in enumerate(scenes(300, 0, "dev")):
        for turn in questions.existence(scene, random.Random(at)):
            words = turn.ask.rstrip("?").split()
            kind = next(word.strip("?.") for word in words if word.strip("?.") in KINDS)
            if turn.answer == "Yes.":
                assert kind in scene.kinds
            elif words[3].strip("?") == kind:  # asked without a colour
                assert kind not in scene.kinds


@pytest.mark.parametrize("asker", questions.SHORT)
def test_short_questions_have_true_answers(asker):
    shown = scenes(200, 0, "dev")
    asked = [(scene, turn) for at, scene in enumerate(shown) for turn in asker(scene, random.Random(at))]
    assert len(asked) > 80
    for scene, turn in asked:
        if asker is questions.colour:
            kind = turn.ask.rstrip("?").split()[-1]
            assert turn.answer == scene.only(kind).colour.capitalize() + "."
        if asker is questions.total:
            assert turn.answer == questions.NUMBERS[len(scene.objects)].capitalize() + "."
        if asker is questions.where:
            kind = turn.ask.rstrip("?").split()[-1]
            assert turn.answer.lower() == scene.only(kind).place + "."


def test_false_events_do_not_happen():
    for at, clip in enumerate(clips(200, 0, "dev")):
        true = {happenings.clause(event) for event in clip.events}
        assert happenings.clause(happenings.extra(clip, random.Random(at))) not in true


def test_altered_events_are_other_events_or_in_another_order():
    for at, clip in enumerate(clips(200, 0, "dev")):
        true = [happenings.clause(event) for event in clip.events]
        assert [happenings.clause(event) for event in happenings.altered(clip, random.Random(at))] != true


def test_a_sentence_is_true_at_its_place_only():
    for at, clip in enumerate(clips(200, 0, "dev")):
        told = happenings.tell(clip.start, clip.events)
        for turn in happenings.told_truth(clip, random.Random(at)):
            sentence = re.search(r"(?:First|Then|Finally) [^.]*\.", turn.ask)[0]
            assert (sentence in told) == (turn.answer == "Yes.")


def test_before_and_after_follow_the_order_of_events():
    for at, clip in enumerate(clips(200, 0, "dev")):
        true = [happenings.clause(event) for event in clip.events]
        for turn in happenings.before_after(clip, random.Random(at)):
            told = [event.clause for event in happenings.told_events(turn.ask)]
            first, second = (true.index(clause) for clause in told)
            assert ((first < second) == (" before " in turn.ask)) == (turn.answer == "Yes.")


def test_neighbours_of_the_ends_are_nothing():
    for clip in clips(50, 0, "dev"):
        turns = happenings.neighbours(clip)
        assert turns[0].answer == turns[-1].answer == "Nothing."
        assert [turn.answer for turn in turns].count("Nothing.") == 2
        assert turns[1].answer.lower() == f"{happenings.clause(clip.events[1])}."


def test_looks_tell_places_and_colours_at_both_ends():
    for clip in clips(50, 0, "dev"):
        for turn in happenings.looks(clip):
            kind = next(kind for kind in KINDS if f"the {kind} " in turn.ask)
            things = clip.start if "start" in turn.ask else clip.states[-1]
            thing = next(thing for thing in things if thing.kind == kind)
            assert turn.answer.lower() == f"{thing.colour if 'colour' in turn.ask else thing.place}."


def test_asked_questions_are_those_that_can_be_answered():
    kinds = set()
    for at, clip in enumerate(clips(100, 0, "dev")):
        (turn,) = happenings.asking(clip, random.Random(at))
        known = {t.ask for t in (*happenings.ends(clip), *happenings.neighbours(clip), *happenings.fates(clip))}
        spatial = {t.ask for t in happenings.looks(clip)}
        asked = set(turn.answer.splitlines())
        assert asked <= known or asked <= spatial
        assert all(len(question.split()) >= 5 for question in asked)
        kinds.add(asked <= spatial)
    assert kinds == {True, False}


def test_a_critique_finds_the_wrong_answer_and_mends_it():
    for at, clip in enumerate(clips(100, 0, "dev")):
        fine, faulty, mended = happenings.critique(clip, random.Random(at))
        assert fine.answer == "No error."
        false = faulty.answer.split(": ", 1)[1]
        assert f"Answer: {false}\n" in faulty.ask
        assert f"Answer: {mended.answer}\n" in fine.ask
        assert false != mended.answer


@given(st.integers(0, 5000))
def test_what_is_told_is_read_back(index):
    clip = clips(1, index, "dev")[0]
    text = happenings.tell(clip.start, clip.events)
    told = happenings.told_events(text)
    assert [event.clause for event in told] == [happenings.clause(event) for event in clip.events]
    assert all(text[event.start : event.end].lower() == event.clause for event in told)


@given(st.text())
def test_any_text_can_be_read_for_events(text):
    assert all(event.clause for event in happenings.told_events(text))
