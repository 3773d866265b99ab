"""Decisions that hold whatever the last bits of the logits are: which are found to, and that they do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmalign.lm.sampling import RowwiseSampling, gumbel
from mmalign.lm.stable import CHOICE_SLACK, FINE_GRID, GRID, SLACK, is_settled, largest, settled_choice, told
from mmalign.types import Sampling

VOCAB = 40

ways = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 50]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
#: Close enough to each other that most draws hang on the last bits.
narrow = st.lists(st.integers(-6, 6), min_size=VOCAB, max_size=VOCAB)


class Noisy:
    """A model whose logits are off by something else in every batch, by less than a quarter of the slack."""

    def __init__(self, exact: Tensor, seed: int) -> None:
        self.exact, self._seed = exact, seed
        self.num_asked = 0

    def seen(self, number: int) -> Tensor:
        drawn = torch.Generator().manual_seed(1000 * self._seed + number)
        off = torch.rand(self.exact.shape, generator=drawn, dtype=torch.float64) * 2 - 1
        return (self.exact + off * largest(self.exact) * SLACK / 4).float()

    def referee(self, row: int, tokens: Sequence[int], found: Tensor) -> Tensor:
        self.num_asked += 1
        assert (found - self.exact[row]).abs().max() < SLACK * self.exact[row].abs().max()
        return self.exact[row]


def draw(model: Noisy, samplings: Sequence[Sampling], number: int, *, stable: bool = True) -> list[int]:
    start = torch.zeros(len(samplings), 2, dtype=torch.int64)
    start[:, 1] = 3
    countable = torch.ones_like(start, dtype=torch.bool)
    process = RowwiseSampling(samplings, range(len(samplings)), start, countable, model.referee if stable else None)
    return process(start, model.seen(number)).argmax(1).tolist()


@given(rows=st.lists(st.tuples(ways, narrow), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_near_ties_and_cut_offs_are_drawn_alike_in_all_batches(
    rows: list[tuple[Sampling, list[int]]], seed: int
) -> None:
    exact = torch.tensor([[3.0 + value * SLACK for value in values] for _, values in rows], dtype=torch.float64)
    exact += torch.rand(exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * SLACK
    model = Noisy(exact, seed)
    samplings = [sampling for sampling, _ in rows]
    first = draw(model, samplings, 0)
    for number in range(1, 6):
        assert draw(model, samplings, number) == first


def test_without_a_referee_such_draws_differ() -> None:
    """What the tests of this file would see without the part that they test."""
    exact = 3.0 + torch.rand(64, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SLACK
    model = Noisy(exact, 0)
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=2), Sampling(temperature=1.0, top_p=0.5)):
        unstable = {tuple(draw(model, [sampling] * 64, number, stable=False)) for number in range(6)}
        assert len(unstable) > 1
        assert len({tuple(draw(model, [sampling] * 64, number)) for number in range(6)}) == 1


@given(
    sampling=ways.filter(lambda way: way.temperature > 0),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.02, 0.3, 3.0]),
)
@settings(deadline=None, max_examples=100)
def test_a_settled_draw_is_the_same_for_all_scores_within_the_slack(
    sampling: Sampling, seed: int, spread: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, VOCAB, generator=rng) * spread
    slack = torch.tensor([[spread * 0.02]])
    noise = gumbel(torch.tensor([seed]), 0, VOCAB)
    settled = is_settled(scores, noise, slack, [sampling.top_k], torch.tensor([[sampling.top_p]]))
    cut = RowwiseSampling([sampling], [seed], torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    found = {
        int((cut._keep_top(scores + (torch.rand(scores.shape, generator=rng) * 2 - 1) * slack) + noise).argmax())
        for _ in range(15)
    }
    assert len(found) == 1 or not settled


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9)])
def test_ordinary_logits_are_hardly_ever_asked_for_again(sampling: Sampling) -> None:
    exact = torch.randn(2000, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4
    model = Noisy(exact, 1)
    draw(model, [sampling] * 2000, 0)
    assert model.num_asked < 20


def test_a_token_that_the_model_forbids_widens_no_slack() -> None:
    row = torch.tensor([[2.0, -3.0, -torch.inf, torch.finfo(torch.float32).min]])
    assert largest(row).item() == 3
    assert is_settled(row, 0.0, largest(row) * SLACK, [0], None).item()


def test_a_row_that_cannot_be_judged_keeps_its_draw() -> None:
    start = torch.zeros(2, 1, dtype=torch.int64)
    even = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])

    def referee(row: int, tokens: Sequence[int], found: Tensor) -> Tensor | None:
        return None if row == 0 else torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    process = RowwiseSampling([Sampling()] * 2, [0, 1], start, torch.zeros_like(start, dtype=torch.bool), referee)
    assert process(start, even.clone()).argmax(1).tolist() == [0, 1]


def test_the_penalty_of_a_judged_row_counts_what_was_written() -> None:
    start = torch.tensor([[0]])
    countable = torch.zeros_like(start, dtype=torch.bool)
    exact = torch.tensor([[2.0, 1.9, 1.0]], dtype=torch.float64)

    def referee(row: int, tokens: Sequence[int], found: Tensor) -> Tensor:
        assert tokens == [1, 0]
        return exact[0]

    once = Sampling(repetition_penalty=1.5)
    process = RowwiseSampling([once], [0], start, countable, referee, slack=0.2)
    written = torch.tensor([[0, 1, 0]])
    # 2 / 1.5 and 1.9 / 1.5 were written; without their penalty the first would win.
    exact[0, 2] = 1.4
    assert process(written, exact.float()).argmax().item() == 2


# Choices -------------------------------------------------------------------------------------------------------------

logps = st.lists(st.floats(-30, 0), min_size=2, max_size=4)


def plain(values: Sequence[float]) -> list[float]:
    whole = [value - max(values) for value in values]
    return [value - math.log(sum(map(math.exp, whole))) for value in whole]


@given(values=logps)
def test_a_choice_is_told_within_a_step(values: list[float]) -> None:
    choice = settled_choice(values, 0)
    assert choice is not None
    assert sum(choice.probabilities) == pytest.approx(1)
    best = choice.probabilities.index(max(choice.probabilities))
    assert best == values.index(max(values))
    assert choice.probabilities.count(choice.probabilities[best]) == 1
    for told_of, logp in zip(choice.probabilities, plain(values), strict=True):
        assert abs(math.log(told_of) - logp) <= 1.01 * GRID


@given(values=logps, seed=st.integers(0, 99), near=st.floats(-1, 1))
@settings(deadline=None)
def test_choices_within_the_slack_are_told_alike_or_not_at_all(values: list[float], seed: int, near: float) -> None:
    slack = 1e-3
    values[1] = values[0] - GRID * round((values[0] - values[1]) / GRID) + near * 2 * slack  # at the edge of a step
    drawn = torch.Generator().manual_seed(seed)
    found = {settled_choice(values, slack)}
    for _ in range(20):
        off = (torch.rand(len(values), generator=drawn, dtype=torch.float64) - 0.5) * slack / 4
        found.add(settled_choice([a + b for a, b in zip(values, off.tolist(), strict=True)], slack))
    exact = settled_choice(values, 0)
    assert found - {None} <= {exact}


def test_an_edge_is_not_told() -> None:
    edge = [0.0 - 2, 0.0 - 2 - 10 * GRID]
    assert settled_choice(edge, 1e-4) is None
    assert settled_choice([edge[0], edge[1] - GRID / 2], 1e-4) is not None


def test_options_that_are_sure_of_everything_have_mass_1() -> None:
    choice = settled_choice([math.log(0.9989), math.log(0.001)], 1e-6)
    assert choice is not None
    assert choice.mass == 1
    assert choice.probabilities[0] == pytest.approx(0.999, abs=2e-5)


@pytest.mark.parametrize("hopeless", [[-math.inf, -math.inf], [math.nan, -1.0], [-1.0, math.nan]])
def test_what_is_no_number_is_handed_on(hopeless: list[float]) -> None:
    choice = settled_choice(hopeless, 1e-4)
    assert choice is not None
    assert not all(map(math.isfinite, choice.probabilities))


def test_an_option_that_is_forbidden_has_no_probability() -> None:
    choice = settled_choice([-0.1, -math.inf, -0.9], 1e-6)
    assert choice is not None
    assert choice.probabilities[1] == 0


def test_scores_are_told_in_fine_steps() -> None:
    assert told([-1.0 + FINE_GRID / 3]) == told([-1.0 - FINE_GRID / 3]) == (-1.0,)
    assert CHOICE_SLACK < SLACK
