"""Which jobs run together."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from mmalign.lm.processing import TEXT_ONLY, Group
from mmalign.lm.prompt import Prompt
from mmalign.lm.schedule import PATIENCE, Job, Verb, is_full, next_batch
from mmalign.types import Chat, Sampling

MANY = 10**9


def job(verb: Verb, length: int, new: int = 0, group: Group = TEXT_ONLY) -> Job:
    return Job(verb, Prompt(Chat(()), "p", (), length, "", group), new, Sampling(max_new_tokens=max(new, 1)))


def lengths(batch: Iterable[Job]) -> list[int]:
    return sorted(j.prompt.num_tokens for j in batch)


def test_jobs_of_like_length_run_together_and_the_oldest_is_among_them() -> None:
    pending = [job("generate", n) for n in (50, 3, 51, 2, 49, 1, 52, 4)]
    assert lengths(next_batch(pending, 4, MANY, MANY)) == [49, 50, 51, 52]
    assert lengths(next_batch(pending[1:], 4, MANY, MANY)) == [1, 2, 3, 4]


def test_a_rest_is_filled_up() -> None:
    pending = [job("generate", n) for n in (5, 1, 2, 3, 4)]
    assert lengths(next_batch(pending, 3, MANY, MANY)) == [3, 4, 5]


def test_media_that_do_not_fit_together_never_share_a_batch() -> None:
    groups: list[Group] = [TEXT_ONLY, ("pictures", 0), ("clips", 4), ("clips", 8)]
    pending = [job("score", number, group=groups[number % 4]) for number in range(1, 17)]
    while pending:
        batch = next_batch(pending, 3, MANY, MANY)
        assert len({j.prompt.group for j in batch}) == 1
        pending = [j for j in pending if j not in batch]


def test_a_full_group_goes_before_short_work_and_short_work_before_long() -> None:
    short, long = [job("logits", 1)], [job("generate", 1) for _ in range(4)]
    assert {j.verb for j in next_batch([*short, *long], 4, MANY, MANY)} == {"generate"}
    assert {j.verb for j in next_batch([*long[:3], *short], 4, MANY, MANY)} == {"logits"}
    assert is_full([*short, *long], 4)
    assert not is_full([*short, *long[:3]], 4)


def test_nobody_is_passed_over_for_ever() -> None:
    late = job("generate", 1)
    for _ in range(PATIENCE):
        assert late not in next_batch([late, job("logits", 1)], 4, MANY, MANY)
    assert next_batch([late, job("logits", 1)], 4, MANY, MANY) == [late]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20),
    max_rows=st.integers(1, 8),
    max_tokens=st.integers(1, 400),
    max_logits_rows=st.integers(1, 100),
)
def test_batches_keep_to_their_bounds_and_everything_runs(
    sizes: list[tuple[int, int]], max_rows: int, max_tokens: int, max_logits_rows: int
) -> None:
    pending = [job("score", length, new) for length, new in sizes]
    rounds = 0
    while pending:
        batch = next_batch(pending, max_rows, max_tokens, max_logits_rows)
        assert pending[0] in batch
        assert 1 <= len(batch) <= max_rows
        if len(batch) > 1:
            widest = max(j.prompt.num_tokens for j in batch) + max(j.new_tokens for j in batch)
            assert len(batch) * widest <= max_tokens
            assert sum(j.new_tokens for j in batch) <= max_logits_rows
        pending = [j for j in pending if j not in batch]
        rounds += 1
    assert rounds <= len(sizes)
