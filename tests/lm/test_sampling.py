"""The decoding arithmetic, without a model; transformers' own processors are the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmalign.lm.sampling import RowwiseSampling, RowwiseStopping, ending, gumbel
from mmalign.types import Sampling
from tests.models import tokenizer

VOCAB = 50


def scores(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def prompts(rows: int, length: int = 6) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(9))


def test_gumbel_noise_has_the_right_distribution() -> None:
    noise = gumbel(torch.arange(200), 3, 5000).double().flatten()
    probabilities = torch.exp(-torch.exp(-noise)).sort().values  # uniform if the noise is Gumbel
    grid = (torch.arange(len(probabilities), dtype=torch.float64) + 0.5) / len(probabilities)
    distance = float((probabilities - grid).abs().max())
    assert distance < 1.63 / math.sqrt(len(probabilities))  # Kolmogorov-Smirnov at 1 %
    assert bool(noise.isfinite().all())


def test_gumbel_noise_is_independent_over_seeds_steps_and_tokens() -> None:
    base = gumbel(torch.arange(100), 0, 1000).double()
    for other in (
        gumbel(torch.arange(1, 101), 0, 1000).double(),
        gumbel(torch.arange(100), 1, 1000).double(),
        base.roll(1, dims=1),
    ):
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.01


def test_gumbel_noise_depends_on_nothing_but_key_step_and_token() -> None:
    keys = torch.tensor([0, 1, 2**63 - 1, 12345])
    noise = gumbel(keys, 7, 64)
    for row, key in enumerate(keys):
        assert torch.equal(gumbel(key[None], 7, 64)[0], noise[row])
    assert torch.equal(gumbel(keys, 7, 32), noise[:, :32])
    # Pinned, so that a change of the generator (and of every pair ever made) cannot go unnoticed.
    assert gumbel(torch.tensor([1]), 0, 3)[0].tolist() == pytest.approx(PINNED, abs=1e-5)


PINNED = [0.896409, -1.397741, 0.880842]


def test_draws_follow_the_softmax() -> None:
    rows = 20_000
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draw = RowwiseSampling(
        [Sampling(temperature=0.8)] * rows,
        list(range(rows)),
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.zeros(rows, 1),
    )
    tokens = draw(torch.zeros(rows, 1, dtype=torch.int64), logits.expand(rows, 4).clone()).argmax(1)
    expected = (logits[0] / 0.8).softmax(0) * rows
    seen = torch.bincount(tokens, minlength=4)
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 0.1 % with 3 degrees of freedom


settings_of_a_row = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    top_p=st.sampled_from([0.05, 0.3, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 20, 50, 80]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)


@given(samplings=st.lists(settings_of_a_row, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_settings_mean_what_they_mean_in_transformers(samplings: list[Sampling], seed: int) -> None:
    rows = len(samplings)
    start, raw = prompts(rows), scores(rows, seed)
    process = RowwiseSampling(samplings, list(range(rows)), start, torch.ones_like(start, dtype=torch.bool))
    noise = gumbel(torch.arange(rows), 0, VOCAB)
    mine = process(start, raw.clone()) - noise
    for row, sampling in enumerate(samplings):
        expected = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(
            start[row : row + 1], raw[row : row + 1]
        )
        expected = TemperatureLogitsWarper(sampling.temperature)(None, expected)
        if sampling.top_k:
            expected = TopKLogitsWarper(sampling.top_k)(None, expected)
        if sampling.top_p < 1:
            expected = TopPLogitsWarper(sampling.top_p)(None, expected)
        assert torch.equal(mine[row].isinf(), expected[0].isinf())
        torch.testing.assert_close(mine[row], expected[0], atol=1e-5, rtol=1e-5)


def test_rows_do_not_see_each_other() -> None:
    samplings = [
        Sampling(temperature=1.0, top_k=3),
        Sampling(),
        Sampling(temperature=0.5, top_p=0.5, repetition_penalty=2.0),
        Sampling(repetition_penalty=1.5),
    ]
    start, raw = prompts(4), scores(4)
    countable = torch.ones_like(start, dtype=torch.bool)
    together = RowwiseSampling(samplings, [5, 6, 7, 8], start, countable)(start, raw.clone())
    for row in range(4):
        alone = RowwiseSampling([samplings[row]], [5 + row], start[row : row + 1], countable[row : row + 1])
        assert torch.equal(alone(start[row : row + 1], raw[row : row + 1].clone())[0], together[row])
    assert torch.equal(together[1], raw[1])


def test_the_penalty_counts_text_and_new_tokens_but_not_padding_or_pictures() -> None:
    start = torch.tensor([[0, 7, 7, 3, 4]])  # pad, picture, picture, text, text
    countable = torch.tensor([[False, False, False, True, True]])
    process = RowwiseSampling([Sampling(repetition_penalty=2.0)], [0], start, countable)
    ones = torch.ones(1, VOCAB)
    first = process(start, ones.clone())[0]
    assert [i for i in range(VOCAB) if first[i] != 1] == [3, 4]
    grown = torch.cat([start, torch.tensor([[9]])], dim=1)
    second = process(grown, -ones)[0]
    assert [i for i in range(VOCAB) if second[i] == -2] == [3, 4, 9]


def test_only_greedy_rows_cost_nothing() -> None:
    start, raw = prompts(3), scores(3)
    process = RowwiseSampling([Sampling()] * 3, [0, 1, 2], start, torch.ones_like(start, dtype=torch.bool))
    assert process(start, raw) is raw


def test_rows_end_at_their_own_limits_and_when_nobody_waits() -> None:
    stopping = RowwiseStopping(None, [1, 3, 100], [(), (), ()], 2, lambda row: row == 2)
    done = [stopping(torch.zeros(3, 2 + step, dtype=torch.int64), None).tolist() for step in (1, 2, 3)]
    assert done == [[True, False, True], [True, False, True], [True, True, True]]
    assert stopping.ended == {0: 1, 1: 3, 2: 1}


TOK = tokenizer()
EOS = TOK.eos_token_id


def ids(text: str) -> list[int]:
    found: list[int] = TOK(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize(
    ("tokens", "stop", "limit", "text", "num_tokens", "is_cut"),
    [
        ([*ids("the fish"), EOS], (), 50, "the fish", len(ids("the fish")) + 1, False),
        (ids("the fish"), (), len(ids("the fish")), "the fish", len(ids("the fish")), True),
        ([*ids("the fish"), EOS], (), len(ids("the fish")), "the fish", len(ids("the fish")), True),
        ([*ids("the fish"), EOS], (), len(ids("the fish")) + 1, "the fish", len(ids("the fish")) + 1, False),
        ([*ids("the fish"), EOS, *ids("more")], (), 50, "the fish", len(ids("the fish")) + 1, False),
        (ids("the fish. More"), (".",), 50, "the fish.", len(ids("the fish. More")), False),
        (ids("the fish."), (".",), len(ids("the fish.")), "the fish.", len(ids("the fish.")), False),
        ([EOS], (), 1, "", 1, False),
    ],
)
def test_endings(
    tokens: list[int], stop: tuple[str, ...], limit: int, text: str, num_tokens: int, is_cut: bool
) -> None:
    end = ending(TOK, tokens, frozenset([EOS]), stop, limit)
    assert (end.text, len(end.tokens), end.is_cut) == (text, num_tokens, is_cut)


@given(text=st.text(min_size=1, max_size=12), stop=st.text(min_size=1, max_size=4))
def test_a_stop_string_is_found_at_the_step_that_completes_it(text: str, stop: str) -> None:
    tokens = ids(text + stop + text)
    stopping = RowwiseStopping(TOK, [10_000], [(stop,)], 0, lambda row: False)
    found = None
    for step in range(1, len(tokens) + 1):
        if bool(stopping(torch.tensor([tokens[:step]]), None)[0]):
            found = step
            break
    whole = [TOK.decode(tokens[:step], skip_special_tokens=True) for step in range(1, len(tokens) + 1)]
    first = next((i + 1 for i, partial in enumerate(whole) if stop in partial), None)
    assert found == first
