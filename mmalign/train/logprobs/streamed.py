"""Log-probs of tokens and their KL from a reference, a few vocabulary rows at a time, forward and backward.

With P and R the distributions of policy and reference before a token y, and W the head's matrix,
d log P(y) / d state = W[y] - P W and d KL(R || P) / d state = (P - R) W. These are as small as the states. So where
the head is frozen the forward pass makes them while it has the distributions, and the backward pass only weighs them:
no more products than with logits that are kept. Where the head is trained, its gradient needs the distributions and
the weights of all tokens together; the backward pass then makes the distributions again.

log P(y) is a concave function of the state, and where policy and reference have the same head, KL(R || P) is how far
it lies below its tangent at the reference's state: the Bregman divergence of the log-partition function. With these
tangents at hand the reference's distributions are not needed, and the KL costs nothing. But that is a difference of
large numbers, as right as a log-prob is: it is for float32 and better only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from mmalign.train.logprobs.head import Anchor, Head, product_type, tokens_at_once


def token_terms(head: Head, states: Tensor, labels: Tensor, anchor: Anchor | None) -> tuple[Tensor, Tensor]:
    """Log-probs (M,) of `labels` (M,) and KL(reference || policy) (F,) of the first F tokens, which the anchor covers.

    Both in nats, float32 or better, with gradient to `states` (M, H) and the weights of `head`, which is plain, as the
    anchor's is.
    """
    if anchor is not None and anchor.has_tangents and anchor.head.linear is head.linear and head.is_concave:
        logps, _ = token_terms(head, states, labels, None)
        count = len(anchor.states)
        return logps, _below_tangents(anchor, states[:count], logps[:count])
    stream = _Stream(head, labels, anchor, product_type(head, states.device))
    layer: Any = head.linear
    found: tuple[Tensor, Tensor] = _TokenTerms.apply(states, layer.weight, layer.bias, stream)
    return found


def tangents(head: Head, states: Tensor, labels: Tensor) -> Tensor:
    """States, the slopes of log-probs there, and the log-probs of `labels`, (M, 2H + 1), without gradient."""
    with torch.enable_grad():
        own = states.detach().requires_grad_()
        logps, _ = token_terms(head, own, labels, None)
        (slopes,) = torch.autograd.grad(logps.sum(), own)
    return torch.cat([states.detach(), slopes, logps.detach().to(states.dtype)[:, None]], dim=-1)


def _below_tangents(anchor: Anchor, states: Tensor, logps: Tensor) -> Tensor:
    """KL(reference || policy) (F,) from the policy's states (F, H) and log-probs (F,)."""
    slopes, heights = anchor.states[:, anchor.head.width : -1], anchor.states[:, -1]
    return heights + ((states - anchor.inputs) * slopes).sum(-1) - logps


@dataclass(frozen=True, slots=True)
class _Stream:
    """What is not learnt from: `dtype` is that of the products."""

    head: Head
    labels: Tensor
    anchor: Anchor | None
    dtype: torch.dtype

    @property
    def border(self) -> int:
        """How many tokens, from the first, have a reference."""
        return 0 if self.anchor is None else len(self.anchor.states)

    def pieces(self, vocabulary: int, least: int = 1) -> Iterator[slice]:
        """Parts of the M tokens, of which none goes past the border."""
        capped = 0 if self.head.softcap is None else 2
        for start, stop, matrices in ((0, self.border, 3), (self.border, len(self.labels), 2)):
            size = max(least, tokens_at_once(vocabulary, matrices + capped))
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop))

    def policy(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-probs (C, V), and how fast the logits rise with what the layer gives, without the scale."""
        logits = self.head.shaped(linear(states, weight, bias))
        slope = None if self.head.softcap is None else 1 - (logits / self.head.softcap).square_()
        return logits.log_softmax(-1), slope

    def references(self) -> Any:
        """A function from a part of the tokens to the reference's log-probs (C, V), None for those without."""
        if (anchor := self.anchor) is None:
            return lambda piece: None
        logits = anchor.head.many(self.dtype)
        return lambda piece: logits(anchor.inputs[piece]).log_softmax(-1) if piece.start < len(anchor.states) else None


class _TokenTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, stream: _Stream
    ) -> tuple[Tensor, Tensor]:
        ctx.stream, ctx.type = stream, states.dtype
        ctx.trains_head = any(ctx.needs_input_grad[1:3])
        steers = ctx.needs_input_grad[0] and not ctx.trains_head
        exact = torch.promote_types(stream.dtype, torch.float32)
        logps, divergences = [states.new_zeros(0, dtype=exact)], [states.new_zeros(0, dtype=exact)]
        to_labels, to_reference = [], [states.new_zeros(0, states.shape[1], dtype=stream.dtype)]
        with torch.autocast(states.device.type, enabled=False):
            matrix, shift = weight.to(stream.dtype), None if bias is None else bias.to(stream.dtype)
            references = stream.references()
            for piece in stream.pieces(len(weight)):
                labels = stream.labels[piece, None]
                policy, slope = stream.policy(states[piece].to(stream.dtype), matrix, shift)
                logps.append(policy.gather(-1, labels).squeeze(-1))
                if (reference := references(piece)) is not None:
                    gap = reference - policy
                    divergences.append(gap.mul_(reference.exp_()).sum(-1))
                    del gap
                if not steers:
                    continue
                policy.exp_()
                if reference is not None:
                    to_reference.append(_steered(stream, reference.neg_().add_(policy), slope, matrix))
                # Before the product, not after it: where P(y) is nearly 1 the difference is what counts.
                policy.neg_().scatter_add_(-1, labels, torch.ones_like(labels, dtype=policy.dtype))
                to_labels.append(_steered(stream, policy, slope, matrix))
        if steers:
            ctx.save_for_backward(torch.cat(to_labels), torch.cat(to_reference))
        else:
            ctx.save_for_backward(states, weight, bias)
        return torch.cat(logps), torch.cat(divergences)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_divergence: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.trains_head:
            return *_with_head(ctx, grad_logps, grad_divergence), None
        to_labels, to_reference = ctx.saved_tensors
        grad = to_labels * grad_logps[:, None]
        grad[: len(to_reference)].addcmul_(to_reference.to(grad.dtype), grad_divergence[:, None])
        return grad.to(ctx.type), None, None, None


def _steered(stream: _Stream, pull: Tensor, slope: Tensor | None, matrix: Tensor) -> Tensor:
    """The gradient (C, H) with respect to states, from that with respect to logits (C, V), which is used up."""
    if slope is not None:
        pull.mul_(slope)
    return (pull.to(stream.dtype) @ matrix).mul_(stream.head.scale)


def _with_head(ctx: Any, grad_logps: Tensor, grad_divergence: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of states (M, H), matrix (V, H) and bias (V,), from distributions that are made again."""
    states, weight, bias = ctx.saved_tensors
    stream: _Stream = ctx.stream
    exact = torch.promote_types(stream.dtype, torch.float32)
    wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    grad_states = states.new_empty(states.shape) if wants_states else None
    grad_weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
    grad_bias = weight.new_zeros(len(weight), dtype=exact) if wants_bias else None
    with torch.autocast(states.device.type, enabled=False):
        matrix, shift = weight.to(stream.dtype), None if bias is None else bias.to(stream.dtype)
        references = stream.references()
        # The gradient of the matrix is gone through for every part, and is larger than parts of this size.
        for piece in stream.pieces(len(weight), least=weight.shape[1] // 8):
            own, labels, weights = states[piece].to(stream.dtype), stream.labels[piece, None], grad_logps[piece, None]
            policy, slope = stream.policy(own, matrix, shift)
            pull = policy.exp_()
            if (reference := references(piece)) is None:
                pull.mul_(-weights)
            else:
                others = grad_divergence[piece, None]
                pull.mul_(others - weights).sub_(reference.exp_().mul_(others))
            pull.scatter_add_(-1, labels, weights)
            if slope is not None:
                pull.mul_(slope)
            pull.mul_(stream.head.scale)
            if grad_bias is not None:
                grad_bias += pull.sum(0)
            pull = pull.to(stream.dtype)
            if grad_states is not None:
                grad_states[piece] = pull @ matrix
            if grad_weight is not None:
                _add_product(grad_weight, pull.T, own)
    return grad_states, grad_weight, grad_bias


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total.add_(first @ second)
