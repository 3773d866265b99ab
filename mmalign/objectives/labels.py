"""How likely a label is right: soft labels and posteriors, as numbers without gradient.

Methods store what these give as a pair's p; objectives that need the current policy call them themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def lcpo_posterior(logit: Tensor, reliability: Tensor | float) -> Tensor:
    """Probability (B,) that the label is right: that of the policy, with logit (B,), weighed with the annotator's."""
    odds = torch.as_tensor(reliability, dtype=logit.dtype, device=logit.device).clamp(1e-3, 1 - 1e-3).logit()
    return (logit + odds).sigmoid()


@torch.no_grad()
def lcpo_update(reliability: Tensor, posterior: Tensor, annotator: Tensor, rate: float = 0.1) -> Tensor:
    """Annotators' reliabilities (A,) moved towards the mean posterior (B,) of their rows; `annotator` (B,) are indices.

    An annotator without rows keeps its own.
    """
    posterior = posterior.to(reliability)
    count = torch.zeros_like(reliability).index_add(0, annotator, torch.ones_like(posterior))
    total = torch.zeros_like(reliability).index_add(0, annotator, posterior)
    moved = (1 - rate) * reliability + rate * total / count.clamp(min=1)
    return torch.where(count > 0, moved, reliability)


@torch.no_grad()
def kendall_consistency(now: Tensor, before: Tensor) -> Tensor:
    """(tau + 1) / 2 of two lists of scores (..., K), K >= 2: 1 where both rank alike, 0 opposite; ties go by index."""
    if now.shape[-1] < 2:
        raise ValueError(f"there are {now.shape[-1]} answers to rank; it takes 2 or more")
    ranks = [scores.argsort(dim=-1, stable=True).argsort(-1).to(torch.float64) for scores in (now, before)]
    first, second = ((rank.unsqueeze(-1) - rank.unsqueeze(-2)).sign() for rank in ranks)
    count = now.shape[-1]
    tau = (first * second).sum((-2, -1)) / (count * (count - 1))
    return ((tau + 1) / 2).to(now.dtype)


@torch.no_grad()
def selfie_labels(margin: Tensor, threshold: Tensor | float, noise: float) -> Tensor:
    """The label's p (B,): 1 where the margin is above the threshold, else 1 - noise."""
    return torch.where(margin > threshold, 1.0, 1.0 - noise).to(margin.dtype)


@torch.no_grad()
def window_quantile(window: Tensor, quantile: float, least: int) -> Tensor:
    """The mean of the two values of `window` (W,) beside its quantile; 0 while it holds fewer than `least`."""
    if len(window) < max(2, least):
        return window.new_zeros(())
    ordered = window.sort().values
    index = min(max(int(len(window) * quantile), 1), len(window) - 1)
    return ordered[index - 1 : index + 1].mean()


@torch.no_grad()
def bald_gain(passes: Tensor) -> Tensor:
    """What there is to learn of a label, in nats (B,): H(mean p) - mean H(p) over stochastic passes (B, T) of p."""

    def entropy(p: Tensor) -> Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))

    return (entropy(passes.mean(-1)) - entropy(passes).mean(-1)).clamp(min=0)


@torch.no_grad()
def upo_alpha(gain: Tensor, power: float = 1.0) -> Tensor:
    """How wrong each label is taken to be (B,), in [0, 1/2]: 0 for the surest pair of the set.

    The rule as printed, 1 / (P + 1) with P <= 1, favours the reversed label of every pair; this one does not.
    """
    certain = (1 - gain).clamp(min=0) ** power
    return 0.5 * (1 - certain / certain.max().clamp(min=torch.finfo(gain.dtype).tiny))


@torch.no_grad()
def mcts_confidence(chosen_value: Tensor, rejected_value: Tensor) -> Tensor:
    """The p (B,), at least 1/2, of a step's label from the visit values of a tree search."""
    return (1 / (1 + rejected_value / chosen_value.clamp(min=1))).clamp(min=0.5)


@torch.no_grad()
def agreement_mask(first: Tensor, second: Tensor) -> Tensor:
    """Which pairs two judges, given as probabilities (B,), decide alike: bool (B,)."""
    return (first > 0.5) == (second > 0.5)


@torch.no_grad()
def preference_strength(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation (B,) of a pair's margins (B, M) under M >= 3 reward models."""
    if margins.shape[-1] < 3:
        raise ValueError(
            f"there are {margins.shape[-1]} reward models; one or two would flip labels by their own noise"
        )
    return margins.mean(-1), margins.std(-1, correction=0)


@torch.no_grad()
def goal_label(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """DNO's q (B,): sg of the difference of two win rates, divided by a temperature (1 in the paper)."""
    return ((first - second) / temperature).sigmoid()
