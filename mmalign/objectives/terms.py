"""The few differentiable functions that objectives are put together from.

All take float tensors and return one value per pair (B,); statistics over a batch are not made here.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def soft_pair(margin: Tensor, prob: Tensor | float = 1.0, scale: Tensor | float = 1.0) -> Tensor:
    """-[prob log s(z) + (1 - prob) log s(-z)], z = scale * margin: cross-entropy of "chosen is better" (B,).

    `prob` is the probability that the label is right; rDPO passes more than 1. No gradient flows into prob and scale.
    """
    z = _fixed(scale) * margin
    prob = _fixed(prob)
    return -(prob * logsigmoid(z) + (1 - prob) * logsigmoid(-z))


def reduce_tokens(values: Tensor, mask: Tensor, weight: Tensor | None = None, *, mean: bool = False) -> Tensor:
    """Sum, or mean, of `values` (B, T) over the tokens of `mask` (B, T) -> (B,).

    `weight` (B, T) multiplies the values and is not part of the mean's count. Values off the mask are never read, so
    they may be infinite; a row without tokens gives 0.
    """
    if weight is not None:
        values = values * weight.detach()
    total = values.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if mean else total


def _fixed(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value
