from __future__ import annotations

import pytest

from mmalign.text.captions import bare_caption, numbered, says_something


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ("A dog runs.", "A dog runs."),
        ("Clip 2 shows a dog.\nThey are connected.\n\nA dog runs.\n", "A dog runs."),
        ("Caption: A dog runs.", "A dog runs."),
        ("**Detailed caption:** A dog runs.", "A dog runs."),
        ("Clip 2: A dog runs.", "A dog runs."),
        ("Caption of clip 2: A dog runs.", "A dog runs."),
        ("Description of the second clip: A dog runs.", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ("After clip 1, the dog of Clip 2 runs.", "After the previous clip, the dog of this clip runs."),
        ("The first clip shows a cat, the second clip a dog.", "the previous clip shows a cat, this clip a dog."),
        ("<think>A cat?\nNo.</think>\nA dog runs.", "A dog runs."),
        ("<think>never closed\nA dog runs.", "A dog runs."),
        ("A clip of 12 dogs and clip 12.", "A clip of 12 dogs and clip 12."),
        (" \n ", ""),
    ],
)
def test_what_a_model_wrote_is_brought_to_its_caption(written: str, caption: str) -> None:
    assert bare_caption(written) == caption


@pytest.mark.parametrize("text", ["", " \n", "N/A", "n/a.", "NA", "None.", "*N/A*"])
def test_texts_that_say_nothing(text: str) -> None:
    assert not says_something(text)


@pytest.mark.parametrize("text", ["A dog.", "nasal", "None of them moves.", "狗"])
def test_texts_that_say_something(text: str) -> None:
    assert says_something(text)


def test_numbered_from_one() -> None:
    assert numbered(["A dog.", "A cat."]) == "1. A dog.\n2. A cat."
