from __future__ import annotations

import pytest

from mmalign.text.negation import negated
from mmalign.text.objects import Vocabulary


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("There are no people.", ["person"]),
        ("A street without a dog or any cats", ["dog", "cat"]),
        ("There is no cat, dog or bird in the tree", ["cat", "dog", "bird"]),
        ("There isn't a boat on the lake", ["boat"]),
        ("It is not a horse but a cow.", ["horse"]),
        ("There is no dog, and a cat sleeps.", ["dog"]),
        ("No dogs are near the house; birds sing", ["dog"]),
        ("The dog is not visible. The cat is.", ["dog"]),
        ("Cars are absent", ["car"]),
        ("neither a cup nor a fork, a spoon", ["cup", "fork"]),
        ("You cannot see any birds", ["bird"]),
        ("The table lacks a vase", ["vase"]),
        ("No, there is a dog", []),
        ("No doubt a dog", []),
        ("not only a dog but a cat", []),
        ("a dog without a leash on a horse", ["leash"]),
        ("nobody owns the piano", []),
        ("It is not far from a house", []),
    ],
)
def test_what_is_denied(text: str, denied: list[str]) -> None:
    found = Vocabulary.load().mentions(text)
    assert [m.name for m in found if negated(text, m.start, m.end)] == denied
