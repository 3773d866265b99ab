"""The streamed log-probs and KL are those of a plain log-softmax, forward and backward, and hold no large matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmalign.objectives import TokenTerm
from mmalign.objectives.distributions import stream
from mmalign.train.logprobs import head as head_module
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.streamed import tangents, token_terms
from tests.train.shapes import RecordShapes

V, H = 23, 5
SHAPES = [Head(nn.Identity()), Head(nn.Identity(), scale=0.3), Head(nn.Identity(), softcap=1.5)]
SHAPES.append(Head(nn.Identity(), scale=1.7, softcap=2.0))
Terms = tuple[Tensor, Tensor]


def made(shape: Head, *, bias: bool, trained: bool, seed: int = 0, dtype: torch.dtype = torch.float64) -> Head:
    draw = torch.Generator().manual_seed(seed)
    linear = nn.Linear(H, V, bias=bias, dtype=dtype)
    for weight in linear.parameters():
        weight.data = torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(dtype)
    return replace(shape, linear=linear.requires_grad_(trained))


def plainly(head: Head, states: Tensor, labels: Tensor, anchor: Anchor | None) -> Terms:
    """Whole matrices, and every function of torch as it is."""

    def log_probs(own: Head, of: Tensor) -> Tensor:
        logits = own.linear(of).to(torch.promote_types(of.dtype, torch.float32)) * own.scale
        if own.softcap is not None:
            logits = own.softcap * torch.tanh(logits / own.softcap)
        return logits.log_softmax(-1)

    ours = log_probs(head, states)
    logps = ours.gather(-1, labels[:, None]).squeeze(-1)
    if anchor is None:
        return logps, logps[:0]
    theirs = log_probs(anchor.head, anchor.states).detach()
    return logps, (theirs.exp() * (theirs - ours[: len(theirs)])).sum(-1)


def gradients(terms: Terms, weights: Terms, leaves: list[Tensor]) -> list[Tensor]:
    loss: Any = sum((value * weight).sum() for value, weight in zip(terms, weights, strict=True))
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "scaled", "capped", "both"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 9), border=st.integers(0, 9), at_once=st.integers(1, 12), seed=st.integers(0, 99))
def test_numbers_and_gradients(
    shape: Head, bias: bool, trained: bool, count: int, border: int, at_once: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    head, reference = made(shape, bias=bias, trained=trained), made(shape, bias=bias, trained=False, seed=seed)
    states = torch.randn(count, H, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (count,), generator=draw)
    border = min(border, count)
    anchor = Anchor(torch.randn(border, H, generator=draw, dtype=torch.float64), reference) if border else None
    weights = torch.randn(count, generator=draw).double(), torch.randn(border, generator=draw).double()
    leaves = [states, *(weight for weight in head.linear.parameters() if trained)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "NUMBERS", at_once * V * 2)
        found = token_terms(head, states, labels, anchor)
        grads = gradients(found, weights, leaves)
    expected = plainly(head, states, labels, anchor)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, gradients(expected, weights, leaves), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("learns", ["states", "weight", "bias"])
def test_what_does_not_learn_gets_no_gradient(learns: str) -> None:
    head = made(SHAPES[3], bias=True, trained=False)
    layer: Any = head.linear
    states, labels = torch.randn(4, H, dtype=torch.float64), torch.tensor([0, 3, 3, 7])
    leaves = {"states": states, "weight": layer.weight, "bias": layer.bias}
    leaf = leaves[learns].requires_grad_()
    anchor = Anchor(torch.randn(2, H, dtype=torch.float64), made(SHAPES[3], bias=True, trained=False, seed=1))
    weights = torch.randn(4).double(), torch.randn(2).double()
    found = gradients(token_terms(head, states, labels, anchor), weights, [leaf])
    expected = gradients(plainly(head, states, labels, anchor), weights, [leaf])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert [name for name, value in leaves.items() if value.grad is not None] == []


def test_huge_logits_stay_finite() -> None:
    """Softmax followed by log would give 0 * -inf here."""
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    head = Head(linear.requires_grad_(False))
    states = torch.tensor([[200.0, 0.0]], requires_grad=True)
    anchor = Anchor(torch.tensor([[0.0, 200.0]]), head)
    values, divergence = token_terms(head, states, torch.tensor([1]), anchor)
    assert (values.item(), divergence.item()) == (-200.0, 200.0)
    (values + divergence).sum().backward()
    assert states.grad is not None
    assert states.grad.flatten().tolist() == pytest.approx([0.0, 0.0], abs=1e-6), "P - R and onehot - P cancel here"


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_rounding_is_that_of_the_plain_way_in_bfloat16(trained: bool) -> None:
    """Against float64 it errs no more than autocast does, also where a token is nearly certain."""
    head = made(SHAPES[0], bias=False, trained=trained, dtype=torch.float32)
    reference = made(SHAPES[0], bias=False, trained=False, seed=0, dtype=torch.float32)
    labels = torch.randint(V, (64,), generator=torch.Generator().manual_seed(1))
    layer: Any = head.linear
    states = layer.weight[labels].detach() * torch.linspace(0.1, 2, 64)[:, None]
    anchor = Anchor(states + 0.1 * torch.randn(states.shape, generator=torch.Generator().manual_seed(2)), reference)
    weights = torch.ones(64), torch.ones(64)
    states.requires_grad_()
    leaves = [states, *([layer.weight] if trained else [])]

    def run(compute: Any) -> list[Tensor]:
        terms = compute(head, states, labels, anchor)
        return [*(value.detach() for value in terms), *gradients(terms, weights, leaves)]

    exact = run(plainly)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, rounded = run(token_terms), run(plainly)
    assert all(value.dtype == torch.float32 for value in found)
    for value, plain, wanted in zip(found, rounded, exact, strict=True):
        noise = (plain - wanted).square().mean().sqrt()
        assert noise > 1e-4
        assert (value - wanted).square().mean().sqrt() < 1.2 * noise
    certain = (found[2] - exact[2]).norm(dim=-1) / exact[2].norm(dim=-1)
    assert certain.max() < 0.1


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_no_matrix_is_larger_than_a_part(trained: bool, with_reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, count, at_once = 977, 40, 4
    monkeypatch.setattr(head_module, "NUMBERS", at_once * 2 * vocabulary)
    linear = nn.Linear(H, vocabulary, bias=False).requires_grad_(trained)
    head, states = Head(linear), torch.randn(count, H, requires_grad=True)
    anchor = Anchor(torch.randn(20, H), Head(linear).frozen()) if with_reference else None
    with RecordShapes() as record:
        logps, divergence = token_terms(head, states, torch.arange(count), anchor)
        (logps.sum() + divergence.sum()).backward()
    large = {shape for shape in record.shapes if vocabulary in shape and H not in shape}
    assert large
    assert max(max(size for size in shape if size != vocabulary) for shape in large) == at_once
    assert count in {size for shape in record.shapes for size in shape}


def test_without_gradient_only_the_logits_are_multiplied() -> None:
    head, states = made(SHAPES[0], bias=False, trained=True), torch.randn(6, H, dtype=torch.float64)
    with torch.no_grad(), RecordShapes() as record:
        token_terms(head, states, torch.arange(6), None)
    assert record.products == 1
    head.linear.requires_grad_(False)
    with RecordShapes() as record:
        token_terms(head, states.requires_grad_(), torch.arange(6), None)[0].sum().backward()
    assert record.products == 2


# The reference's tangents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[:2], ids=["plain", "scaled"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_kl_is_how_far_log_probs_lie_below_their_tangents(shape: Head, bias: bool) -> None:
    head = made(shape, bias=bias, trained=False)
    draw = torch.Generator().manual_seed(4)
    states = torch.randn(6, H, generator=draw, dtype=torch.float64, requires_grad=True)
    labels, inputs = torch.randint(V, (6,), generator=draw), torch.randn(4, H, generator=draw, dtype=torch.float64)
    anchor = Anchor(tangents(head, inputs, labels[:4]), head)
    assert anchor.has_tangents
    assert torch.equal(anchor.inputs, inputs)
    weights = torch.randn(6, generator=draw).double(), torch.randn(4, generator=draw).double()
    with RecordShapes() as record:
        found = token_terms(head, states, labels, anchor)
        grads = gradients(found, weights, [states])
    assert record.products == 2, "no more than log-probs alone"
    expected = plainly(head, states, labels, replace(anchor, states=inputs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, gradients(expected, weights, [states]), rtol=1e-9, atol=1e-11)


def test_tangents_are_for_the_same_head_and_exact_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the distributions themselves are compared, from the states that stand before the tangents."""
    head, other = made(SHAPES[0], bias=False, trained=True), made(SHAPES[0], bias=False, trained=False, seed=9)
    states, labels = torch.randn(3, H, dtype=torch.float64), torch.tensor([2, 5, 5])
    inputs = torch.randn(3, H, dtype=torch.float64)
    anchor = Anchor(tangents(other, inputs, labels), other)
    expected = plainly(head, states, labels, replace(anchor, states=inputs))
    torch.testing.assert_close(token_terms(head, states, labels, anchor), expected, rtol=1e-10, atol=1e-12)
    assert other.is_concave
    assert not replace(other, softcap=2.0).is_concave
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not other.is_concave
        assert token_terms(other, inputs, labels, anchor)[1].tolist() == [0, 0, 0], "rounded alike"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert not other.is_concave


def test_a_term_of_no_tokens_is_nothing() -> None:
    """A list of answers that no pair of a batch has."""
    term = TokenTerm(lambda logits, labels: {"x": logits["policy"].log_softmax(-1)[:, 0]})
    mask = torch.zeros(2, 3, dtype=torch.bool)
    found = stream(term, lambda piece: {"policy": torch.zeros(0, V)[piece]}, torch.zeros(0, dtype=torch.long), mask)
    assert found["x"].tolist() == torch.zeros(2, 3).tolist()
