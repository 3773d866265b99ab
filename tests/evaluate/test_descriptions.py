import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.evaluate.descriptions import cut, measure, read_scene, reader_of, shortened
from mmalign.evaluate.items import Item, scene_items
from mmalign.text.objects import Vocabulary
from mmalign.tiny.world import KINDS
from mmalign.types import Sample

TEXT = "There is a big red boat at the top. There is also a small blue fish on the left. There is also a green kite."


def item() -> Item:
    return Item(
        Sample("one"),
        frozenset({"boat", "fish"}),
        {"boat": frozenset({"red"}), "fish": frozenset({"orange"})},
        {"boat": frozenset({"at the top"}), "fish": frozenset({"on the left"})},
    )


def test_a_description_is_measured_in_every_column() -> None:
    values = measure([TEXT], [item()], read_scene)
    assert values == {
        "chair_i": pytest.approx(1 / 3),
        "chair_s": 1.0,
        "recall": 1.0,
        "mentions": 3.0,
        "words": len(TEXT.split()),
        "colour": 0.5,  # the kite is not there, so its colour is neither right nor wrong
        "place": 1.0,
    }


def test_without_attributes_their_columns_are_absent() -> None:
    plain = Item(Sample("one"), frozenset({"dog"}))
    values = measure(["A brown dog and a cat."], [plain], reader_of(Vocabulary.load(None)))
    assert values["chair_i"] == 0.5
    assert values["recall"] == 1.0
    assert "colour" not in values
    assert "place" not in values


@pytest.mark.parametrize(
    ("mentions", "kept"),
    [
        (0, ""),
        (1, "There is a big red boat at the top."),
        (2, "There is a big red boat at the top. There is also a small blue fish on the left."),
        (3, TEXT),
        (9, TEXT),
    ],
)
def test_a_cut_ends_behind_the_sentence_of_its_last_mention(mentions: int, kept: str) -> None:
    assert cut(TEXT, mentions, read_scene) == kept


def test_a_cut_inside_a_sentence_with_two_mentions_ends_behind_the_first() -> None:
    assert cut("There is a red boat and a blue fish.", 1, read_scene) == "There is a red boat"


@given(st.lists(st.sampled_from(KINDS), max_size=6), st.integers(0, 7))
def test_a_cut_keeps_exactly_the_wanted_number_of_mentions(kinds: list[str], mentions: int) -> None:
    text = " ".join(f"There is a red {kind} at the top." for kind in kinds)
    assert len(read_scene(cut(text, mentions, read_scene))) == min(mentions, len(kinds))


def test_held_out_scenes_are_never_those_of_pairs_or_settings() -> None:
    drawn = {
        split: {item.sample.media[0].image.tobytes() for item in scene_items(100, seed=0, split=split)}
        for split in ("pairs", "dev", "test")
    }
    assert all(len(pictures) == 100 for pictures in drawn.values())
    assert not drawn["pairs"] & drawn["test"]
    assert not drawn["dev"] & drawn["test"]
    assert not drawn["pairs"] & drawn["dev"]


def test_items_of_a_scene_know_what_it_holds() -> None:
    for scene_item in scene_items(20, seed=1, split="dev"):
        assert set(scene_item.colours) == set(scene_item.places) == scene_item.objects
        assert all(scene_item.colours.values())


def sentences(num: int) -> str:
    return " ".join(["There is a red boat at the top."] * num)


@pytest.mark.parametrize(
    ("lengths", "mean", "left"),
    [
        ([4, 4, 4, 4], 3.0, [3, 3, 3, 3]),
        ([4, 4, 4, 4], 2.5, [3, 2, 3, 2]),
        ([1, 5, 2, 6], 2.5, [1, 4, 2, 3]),
        ([2, 3], 9.0, [2, 3]),
        ([2, 3], 0.0, [0, 0]),
        ([0, 0], 1.0, [0, 0]),
    ],
)
def test_texts_are_cut_to_a_mean_number_of_mentions(lengths: list[int], mean: float, left: list[int]) -> None:
    cut_texts = shortened([sentences(num) for num in lengths], mean, read_scene)
    assert [len(read_scene(text)) for text in cut_texts] == left


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.floats(0, 7))
def test_the_mean_is_met_wherever_it_can_be(lengths: list[int], mean: float) -> None:
    left = [len(read_scene(text)) for text in shortened([sentences(num) for num in lengths], mean, read_scene)]
    wanted = min(mean, sum(lengths) / len(lengths))
    assert abs(sum(left) / len(left) - wanted) <= 0.5 / len(lengths) + 1e-9
    assert max(left) - min([kept for kept, length in zip(left, lengths, strict=True) if kept < length] or [6]) <= 1
