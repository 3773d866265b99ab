"""LOGIT evidence: the worked number, the invariances, and which tokens stand for an option."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmalign.lm.choosing import choice_from_logits, choice_from_logps, first_tokens
from mmalign.lm.protocol import YES_NO
from mmalign.lm.render import Renderer
from tests.models import STRING_TEMPLATE, tokenizer

RENDERER = Renderer(tokenizer(STRING_TEMPLATE))
PROMPT = "<|user|>Is it?<|end|>\n<|assistant|>"


def test_worked_number() -> None:
    """self_consistency, section 9: yes 2.0, Yes 1.5, no 1.0, No 0.0 and nothing else."""
    choice = choice_from_logits(torch.tensor([2.0, 1.5, 1.0, 0.0]), [[0, 1], [2, 3]])
    assert choice.probabilities[0] == pytest.approx(0.76148, abs=5e-6)
    assert choice.mass == pytest.approx(1.0)


def test_mass_is_what_the_options_had_of_the_whole_vocabulary() -> None:
    choice = choice_from_logits(torch.tensor([0.0, 0.0, 0.0, 0.0]), [[0], [1]])
    assert choice.probabilities == pytest.approx((0.5, 0.5))
    assert choice.mass == pytest.approx(0.5)


logit = st.floats(-20, 20, width=32)


@given(values=st.lists(logit, min_size=6, max_size=6), shift=st.floats(-50, 50, width=32))
def test_a_constant_changes_nothing(values: list[float], shift: float) -> None:
    tokens = [[0, 1], [2], [3]]
    plain = choice_from_logits(torch.tensor(values), tokens)
    moved = choice_from_logits(torch.tensor(values) + shift, tokens)
    assert moved.probabilities == pytest.approx(plain.probabilities, abs=1e-4)
    assert moved.mass == pytest.approx(plain.mass, abs=1e-4)


@given(values=st.lists(logit, min_size=6, max_size=6), order=st.permutations([0, 1, 2]))
def test_permuting_options_permutes_probabilities(values: list[float], order: list[int]) -> None:
    tokens = [[0, 1], [2], [3]]
    plain = choice_from_logits(torch.tensor(values), tokens)
    moved = choice_from_logits(torch.tensor(values), [tokens[i] for i in order])
    assert moved.probabilities == pytest.approx([plain.probabilities[i] for i in order])
    assert sum(moved.probabilities) == pytest.approx(1)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(100_000, dtype=torch.bfloat16)
    assert choice_from_logits(logits, [[0], [1]]).mass == pytest.approx(2e-5, rel=1e-4)


def test_hopeless_options_still_compare() -> None:
    choice = choice_from_logps([-2000.0, -2000.0 - math.log(3)])
    assert choice.probabilities == pytest.approx((0.75, 0.25))
    assert choice.mass == 0.0


def test_single_token_forms_with_and_without_a_blank_count() -> None:
    tokens = first_tokens(RENDERER, PROMPT, YES_NO)
    assert tokens is not None
    names = [sorted(RENDERER.tokenizer.decode([token]) for token in option) for option in tokens]
    for option, found in zip(YES_NO, names, strict=True):
        assert found
        assert {name.strip() for name in found} <= set(option)
    assert " Yes" in names[0]


def test_a_form_of_several_tokens_counts_with_its_first_if_no_other_has_it() -> None:
    assert len(RENDERER.token_ids("bcd")) > 1
    tokens = first_tokens(RENDERER, PROMPT, (["bcd"], ["k"]))
    assert tokens is not None
    assert RENDERER.tokenizer.decode(tokens[0]) == "b"


def test_shared_first_tokens_are_dropped() -> None:
    assert first_tokens(RENDERER, PROMPT, (["bcd"], ["bkq"])) is None
    tokens = first_tokens(RENDERER, PROMPT, (["b", "k"], ["b", "q"]))
    assert tokens is not None
    assert [[RENDERER.tokenizer.decode([t]).strip() for t in option] for option in tokens] == [["k"], ["q"]]


def test_forms_that_fuse_with_the_prompt_do_not_count() -> None:
    # "th" + "e" becomes one token, so "e" has no token of its own behind "th".
    fused = first_tokens(RENDERER, PROMPT + " th", (["e"], ["k"]))
    assert fused is None or all(RENDERER.tokenizer.decode([t]) != "e" for t in fused[0])
