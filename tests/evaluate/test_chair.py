import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.evaluate.chair import Chair, chair

NAMES = st.lists(st.sampled_from("abcdef"), max_size=6)


def test_worked_example_of_the_spec() -> None:
    # benchmarks.md, CHAIR: caption 1 names dog, puppy (= dog), frisbee with truth {dog}; caption 2 cat with {cat}.
    scores = chair([["dog", "dog", "frisbee"], ["cat"]], [{"dog"}, {"cat"}])
    assert scores == Chair(chair_i=0.25, chair_s=0.5, recall=1.0, mentions=2.0)


def test_repeats_count_in_chair_i_but_not_in_recall() -> None:
    scores = chair([["kite", "kite", "dog"]], [{"dog", "cat"}])
    assert scores.chair_i == pytest.approx(2 / 3)
    assert scores.recall == 0.5


def test_silent_answers_hallucinate_nothing_and_recall_nothing() -> None:
    assert chair([[], []], [{"dog"}, set()]) == Chair(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("mentions", "truths"), [([], []), ([["a"]], [])])
def test_needs_as_many_truths_as_answers(mentions: list[list[str]], truths: list[set[str]]) -> None:
    with pytest.raises(ValueError, match="need as many"):
        chair(mentions, truths)


@given(st.lists(st.tuples(NAMES, st.sets(st.sampled_from("abcdef"))), min_size=1, max_size=8))
def test_shares_are_shares_and_order_does_not_matter(rows: list[tuple[list[str], set[str]]]) -> None:
    named, there = [row[0] for row in rows], [row[1] for row in rows]
    scores = chair(named, there)
    assert all(0 <= share <= 1 for share in (scores.chair_i, scores.chair_s, scores.recall))
    assert (scores.chair_s == 0) == (scores.chair_i == 0)
    assert chair(named[::-1], there[::-1]) == scores


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_answers_that_name_just_what_is_there_are_perfect(named: list[list[str]]) -> None:
    scores = chair(named, [set(names) for names in named])
    assert scores.chair_i == scores.chair_s == 0
    assert scores.recall == (1.0 if any(named) else 0.0)
