import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.tiny import KINDS, Mention, mentions, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.happenings import caption as tell_clip
from mmalign.tiny.happenings import clause
from mmalign.tiny.language import a, caption, told, write


def test_a_caption_is_read_back_in_order():
    text = "There is a big red boat at the top left. There is also an orange fish, and two mushrooms on the right."
    read = [(m.kind, m.colour, m.size, m.place) for m in mentions(text)]
    assert read == [
        ("boat", "red", "big", "at the top left"),
        ("fish", "orange", None, None),
        ("mushroom", None, None, "on the right"),
    ]
    assert all(text[m.start : m.end].count(m.kind) == 1 for m in mentions(text))


@given(st.integers(0, 5000), st.sampled_from(["detail", "step", "imagine"]))
def test_what_is_written_is_what_is_read(index, style):
    shown = scenes(1, index, "dev")[0]
    things = told(shown, style, random.Random(index))
    read = mentions(write(things, style))
    assert [(t.kind, t.colour, t.size, t.place) for t in things] == [(m.kind, m.colour, m.size, m.place) for m in read]


@given(st.text())
def test_any_text_can_be_read(text):
    assert all(mention.kind in KINDS for mention in mentions(text))


def test_a_place_may_follow_a_verb():
    assert mentions("The fish is at the bottom right.") == [Mention("fish", None, None, "at the bottom right", 4, 31)]


def test_articles():
    assert (a("orange fish"), a("anchor"), a("red fish")) == ("an orange fish", "an anchor", "a red fish")


@pytest.mark.parametrize(
    ("style", "low", "high"), [("step", 0, 0), ("list", 0, 0), ("imagine", 1, 1), ("detail", 0.4, 0.6)]
)
def test_how_often_a_style_names_what_is_absent(style, low, high):
    shown = scenes(800, 0, "dev")
    texts = [caption(scene, style, random.Random(at)) for at, scene in enumerate(shown)]
    false = [any(m.kind not in s.kinds for m in mentions(text)) for s, text in zip(shown, texts, strict=True)]
    assert low <= sum(false) / len(false) <= high


def test_slips_come_late_and_nothing_that_is_there_is_left_out():
    for at, scene in enumerate(scenes(300, 0, "dev")):
        things = told(scene, "detail", random.Random(at))
        assert set(scene.objects) <= set(things)
        assert all(at >= len(scene.objects) - 1 for at, thing in enumerate(things) if thing not in scene.objects)


def test_a_clip_caption_tells_the_events_in_order():
    for at, clip in enumerate(clips(50, 0, "dev")):
        text = tell_clip(clip, "step", random.Random(at))
        spots = [text.index(clause(event), 0) for event in clip.events]
        assert spots == sorted(spots)
