import sys
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.tiny import PLACES, THEMES, Scene, scene, scenes
from mmalign.tiny.clips import clip, clips


def test_importing_the_package_loads_no_torch():
    code = "import sys, mmalign.tiny; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    run([sys.executable, "-c", code], check=True)


def test_the_same_seed_gives_the_same_scenes_and_a_longer_list_begins_with_the_shorter():
    assert scenes(5, 3, "test") == scenes(9, 3, "test")[:5]
    assert scenes(5, 3, "test") != scenes(5, 4, "test")
    assert clips(3, 1, "dev") == clips(5, 1, "dev")[:3]


def test_splits_share_no_scene():
    seen = [set(scenes(300, 0, split)) for split in ("train", "pairs", "dev", "test")]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'val'"):
        scene(0, "val")
    with pytest.raises(ValueError, match="'val'"):
        clip(0, "val")


@given(st.integers(0, 2**40), st.integers(0, 500))
def test_a_scene_has_two_to_six_things_on_places_of_their_own(seed: int, index: int):
    drawn = scene(seed, "dev", index)
    assert 2 <= len(drawn.objects) <= 6
    assert len({thing.place for thing in drawn.objects}) == len(drawn.objects)
    assert drawn.kinds == {thing.kind for thing in drawn.objects}
    assert not drawn.kinds & set(drawn.absent())
    assert set(drawn.absent_typical()) <= set(THEMES[drawn.theme]) - drawn.kinds
    assert sorted(drawn.in_order(), key=lambda thing: PLACES.index(thing.place)) == sorted(
        drawn.objects, key=lambda thing: PLACES.index(thing.place)
    )


def test_most_things_belong_to_the_theme():
    drawn = scenes(500, 0, "dev")
    typical = [thing.kind in THEMES[one.theme] for one in drawn for thing in one.objects]
    assert 0.6 < sum(typical) / len(typical) < 0.9


@given(st.integers(0, 2**40))
def test_a_clip_tells_what_happens_to_things_that_are_there(seed: int):
    drawn = clip(seed, "dev")
    assert 2 <= len(drawn.events) <= 3
    assert len(drawn.states) == len(drawn.events)
    before = drawn.start
    for event, state in zip(drawn.events, drawn.states, strict=True):
        kinds = [thing.kind for thing in state]
        assert len(set(kinds)) == len(kinds)
        assert len({thing.place for thing in state}) == len(state)
        assert (event.thing in before) != (event.kind == "appear")
        assert (event.thing.kind in kinds) != (event.kind == "vanish")
        before = state


def test_a_scene_can_be_built_by_hand():
    one = scene(0, "dev").objects[0]
    assert Scene((one,), "sea").only(one.kind) == one
    assert Scene((one,), "sea").at(one.place) == one
    assert Scene((one,), "sea").count(one.kind) == 1
