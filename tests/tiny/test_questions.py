import random
from collections import Counter

import pytest

from mmalign.tiny import KINDS, happenings, questions, scenes
from mmalign.tiny.clips import clips

PICTURE_PAIRS = (questions.existence, questions.statements, questions.caption_judging, questions.relation)
CLIP_PAIRS = (happenings.existence, happenings.truth, happenings.before_after, happenings.caption_judging)


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
