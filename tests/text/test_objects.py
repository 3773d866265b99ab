from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import RecipeError
from mmalign.text.articles import plural, with_article
from mmalign.text.objects import LISTS, Mention, Vocabulary

COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop
sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball
glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""
COCO_NAMES = [" ".join(name.split()) for name in COCO.split(",")]
WORLD = "fish boat anchor crab tree flower house mushroom cloud sun moon kite cup apple key book".split()


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.load()


def names(words: Vocabulary, text: str) -> list[str]:
    return [mention.name for mention in words.mentions(text)]


def test_the_own_list_is_large_and_names_no_object_twice(words: Vocabulary) -> None:
    lines = [line.split("#")[0] for line in LISTS["objects"].read_text(encoding="utf-8").splitlines()]
    entries = [line.split(",")[0].strip() for line in lines if line.strip() and not line.startswith("!")]
    assert len(entries) == len(set(entries)) == len(words.names) >= 500


def test_all_coco_names_are_one_object_each(words: Vocabulary) -> None:
    assert len(COCO_NAMES) == 80
    found = {name: words.mentions(name) for name in COCO_NAMES}
    assert all(len(m) == 1 and (m[0].start, m[0].end) == (0, len(name)) for name, m in found.items())
    assert len({m[0].name for m in found.values()}) == 80


@pytest.mark.parametrize("name", WORLD)
def test_the_drawn_things_are_objects_by_their_own_name(words: Vocabulary, name: str) -> None:
    assert name in words.names
    article = "an" if name in ("anchor", "apple") else "a"
    assert words.thing(name) == f"{article} {name}"
    assert names(words, f"There is also {article} big red {name} at the bottom left.") == [name]
    assert names(words, f"There are two {words.plural(name)}.") == [name]


def test_the_drawn_world_has_a_list_of_its_own(words: Vocabulary) -> None:
    drawn = Vocabulary.load("drawn")
    assert sorted(drawn.names) == sorted(WORLD)
    assert [drawn.thing(name) for name in WORLD] == [words.thing(name) for name in WORLD]
    assert Vocabulary.load("objects") is words


@pytest.mark.parametrize("colour", "red orange yellow green blue purple brown white".split())
def test_a_colour_is_no_object(words: Vocabulary, colour: str) -> None:
    text = (
        f"There is a big {colour} fish at the top. The boat is {colour}. A {colour} and white cup and a {colour} key."
    )
    assert names(words, text) == ["fish", "boat", "cup", "key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A hot dog and a teddy bear.", ["hot dog", "teddy bear"]),
        ("Hot-dogs and teddy  bears!", ["hot dog", "teddy bear"]),
        ("A toilet seat is up.", ["toilet"]),
        ("The kitchen table lamp", ["lamp"]),
        ("dogs, cats", ["dog", "cat"]),
        ("The dog house is empty", ["dog house"]),
        ("A dog's bowl", ["dog", "bowl"]),
        ("A MAN and two Women ride BICYCLES", ["person", "person", "bicycle"]),
        ("three knives, a pair of scissors and many leaves", ["knife", "scissors", "leaf"]),
        ("A bird's eye view of a sea of people", ["person"]),
        ("catalogue, carpeted, doghouses", ["dog house"]),
        ("boxes of strawberries, buses, wolves, sheep", ["box", "strawberry", "bus", "wolf", "sheep"]),
        ("He can watch and fly; they swing.", []),
        ("A can, a fly and her watch", ["can", "fly", "watch"]),
        ("two small flies on old cans", ["fly", "can"]),
        ("an orange on the table, oranges, a glass of milk", ["orange", "table", "orange", "glass", "milk"]),
        ("an orange kite, a glass vase, the walls are orange", ["kite", "vase", "wall"]),
        ("red, orange, blue", []),
        ("Orange, apple, banana", ["orange", "apple", "banana"]),
        ("slices of pizza and two loaves of bread", ["pizza", "bread"]),
        ("hot\n\ndog", ["dog"]),
        ("", []),
    ],
)
def test_what_a_text_names(words: Vocabulary, text: str, expected: list[str]) -> None:
    assert names(words, text) == expected


def test_offsets_are_characters_also_after_wide_ones(words: Vocabulary) -> None:
    text = "Ein 🐕‍🦺 naïve café: two DOGS — über a hot-dog"
    found = words.mentions(text)
    assert [(m.name, text[m.start : m.end]) for m in found] == [("dog", "DOGS"), ("hot dog", "hot-dog")]


@given(st.text())
def test_mentions_of_any_text_are_ordered_words_in_it(text: str) -> None:
    words = Vocabulary.load()
    end = 0
    for mention in words.mentions(text):
        assert end <= mention.start < mention.end <= len(text)
        assert mention.name in words.names
        end = mention.end


@given(st.lists(st.sampled_from(COCO_NAMES), min_size=1, max_size=8), st.sampled_from([", ", "; ", ". ", "\n"]))
def test_a_list_of_names_is_read_back(listed: list[str], between: str) -> None:
    words = Vocabulary.load()
    assert names(words, between.join(listed)) == [words.mentions(name)[0].name for name in listed]


@pytest.mark.parametrize(
    ("name", "thing", "several"),
    [
        ("scissors", "a pair of scissors", "scissors"),
        ("snow", "snow", "snow"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("unicorn", "a unicorn", "unicorns"),
        ("uniform", "a uniform", "uniforms"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("person", "a person", "people"),
        ("fish", "a fish", "fish"),
        ("strawberry", "a strawberry", "strawberries"),
    ],
)
def test_articles_and_plurals(words: Vocabulary, name: str, thing: str, several: str) -> None:
    assert (words.thing(name), words.plural(name)) == (thing, several)


def test_a_synonym_has_its_own_article_and_plural(words: Vocabulary) -> None:
    assert words.synonyms("person")[0] == "person"
    assert (words.thing("person", "adult"), words.plural("person", "man")) == ("an adult", "men")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("orange fish", "an orange fish"), ("one-eyed cat", "a one-eyed cat"), ("x-ray", "an x-ray"), ("urn", "an urn")],
)
def test_article_follows_the_sound(word: str, expected: str) -> None:
    assert with_article(word) == expected


def test_plural_of_the_head_noun() -> None:
    assert [plural(w) for w in ("slice of pizza", "box", "key", "berry")] == [
        "slices of pizza",
        "boxes",
        "keys",
        "berries",
    ]


def test_a_users_list_replaces_the_own_one(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffgizmo, thingy/thingies # ours\n\n!gizmo club\n", encoding="utf-8")
    words = Vocabulary.load(path)
    assert words.names == ("gizmo",)
    assert words.mentions("Two Thingies, the gizmo club, a dog") == [Mention("gizmo", 4, 12)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog\ncat, dogs\n", r"words.txt:2: 'dogs' stands for 'dog' already"),
        ("dog, , cat\n", r"words.txt:1: '' is no word"),
        ("dog/\n", r"words.txt:1: 'dog/' is no word"),
        ("# nothing\n", r"words.txt: names no object"),
        ("!...\n", r"words.txt:1: '...' is no word"),
    ],
)
def test_a_bad_list_is_one_line_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as caught:
        Vocabulary.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere.txt: cannot be read"):
        Vocabulary.load(tmp_path / "nowhere.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"b.txt: cannot be read"):
        Vocabulary.load(tmp_path / "b.txt")
