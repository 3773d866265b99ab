from __future__ import annotations

import random
from collections import Counter

from mmalign.inject.cooccurrence import Cooccurrence

TEXTS = [["boat", "fish", "fish"], ["boat", "fish"], ["boat", "crab"], ["tree"], []]


def test_counts_are_per_text_and_rows_are_sorted() -> None:
    known = Cooccurrence.learn(TEXTS)
    assert known.frequency == {"boat": 3, "fish": 2, "crab": 1, "tree": 1}
    assert known.companions["boat"] == ("fish", "crab")
    assert known.companions["fish"] == ("boat",)
    assert known.companions["tree"] == ()


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert Cooccurrence.learn(TEXTS) == Cooccurrence.learn(reversed([list(reversed(text)) for text in TEXTS]))


def test_only_the_most_frequent_absent_companions_are_drawn() -> None:
    texts = [["sea", f"thing {rank}"] for rank in range(6) for _ in range(6 - rank)]
    known = Cooccurrence.learn(texts)
    rng = random.Random(0)
    drawn = Counter(known.tempting({"sea"}, {"sea", "thing 0"}, 3, rng) for _ in range(300))
    assert set(drawn) == {"thing 1", "thing 2", "thing 3"}
    assert all(abs(count - 100) < 3 * (300 * 2 / 9) ** 0.5 for count in drawn.values())


def test_without_fitting_companions_any_absent_thing_of_the_set() -> None:
    known = Cooccurrence.learn(TEXTS)
    drawn = {known.tempting({"tree"}, {"tree", "crab"}, 10, random.Random(seed)) for seed in range(40)}
    assert drawn == {"boat", "fish"}


def test_nothing_left() -> None:
    known = Cooccurrence.learn(TEXTS)
    rng = random.Random(0)
    assert known.tempting((), set(), 10, rng) is None
    assert known.tempting({"boat"}, {"boat", "fish", "crab", "tree"}, 10, rng) is None
