"""The few differentiable functions that objectives are put together from.

All take float tensors and return one value per pair (B,); statistics over a batch are not made here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def soft_pair(
    margin: Tensor, prob: Tensor | float = 1.0, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0
) -> Tensor:
    """-[prob log s(z) + (1 - prob) log s(-z)], z = scale * margin + offset: cross-entropy of "chosen is better" (B,).

    `prob` is the probability that the label is right; rDPO passes more than 1. Gradient flows into the margin only.
    """
    z = _fixed(scale) * margin + _fixed(offset)
    prob = _fixed(prob)
    return -(prob * logsigmoid(z) + (1 - prob) * logsigmoid(-z))


def square(prediction: Tensor, target: Tensor | float) -> Tensor:
    """(prediction - target)^2; no gradient flows into the target."""
    return (prediction - _fixed(target)) ** 2


def masked_square(prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (B,) of squared errors over the labels (B, A) that are no NaN, and how many there are (B,)."""
    known = ~label.isnan()
    error = torch.where(known, prediction, 0.0) - torch.where(known, label, 0.0).detach()
    return (error**2).sum(-1), known.sum(-1)


def bernoulli_consistency(first: Tensor, second: Tensor) -> Tensor:
    """1/2 (KL(p, q) + KL(q, p)) of two coins with logits `first` and `second`, with gradient to both."""
    return 0.5 * (first.sigmoid() - second.sigmoid()) * (first - second)


def bernoulli_entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of a coin with this logit."""
    return softplus(logit) - logit * logit.sigmoid()


def reduce_tokens(values: Tensor, mask: Tensor, weight: Tensor | None = None, *, mean: bool = False) -> Tensor:
    """Sum, or mean, of `values` (B, T) over the tokens of `mask` (B, T) -> (B,).

    `weight` (B, T) multiplies the values and is not part of the mean's count. Values off the mask, or of weight 0, are
    never read, so they may be infinite, and get no gradient; a row without tokens gives 0.
    """
    read = mask
    if weight is not None:
        read = mask & (weight != 0)
        values = values.masked_fill(~read, 0.0) * weight.detach()
    total = values.masked_fill(~read, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if mean else total


def pair_matrix(
    scores: Tensor, weight: Tensor, scale: Tensor | float = 1.0, link: Literal["logistic", "hinge"] = "logistic"
) -> Tensor:
    """Sum over i, j of weight_ij l(scale (s_i - s_j)), l = -log s or relu of the negative (B,).

    `scores` (B, K), `weight` (B, K, K), 0 for pairs that are none; `scale` is a number or broadcasts to the weight.
    """
    weight = weight.detach()
    difference = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).masked_fill(weight == 0, 0.0)
    z = _fixed(scale) * difference
    return (weight * (-logsigmoid(z) if link == "logistic" else torch.relu(-z))).sum((-2, -1))


def softmax_ce(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """Cross-entropy over the last axis of `logits` (..., N), one value per row (...).

    `target` (...) are the right entries; without it row i's is entry i. Entries of -inf take no part.
    """
    if target is None:
        target = torch.arange(logits.shape[-2], device=logits.device).expand(logits.shape[:-1])
    return logits.logsumexp(-1) - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def clipped_pg(log_ratio: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = exp(log_ratio): the clipped surrogate of PPO.

    The log-ratio is held within [-20, 20], as sums over sequences may be huge. The advantage gets no gradient.
    """
    ratio = log_ratio.clamp(-20, 20).exp()
    advantage = advantage.detach()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def _fixed(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value
