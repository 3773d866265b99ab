"""Which decisions hold whatever the last bits of the logits are, as in exact geometric predicates (Shewchuk 1997).

Batches of other shapes, or other numbers of threads, give the same float32 model logits that differ in the last bits.
Most decisions are the same for all of them: the second best token is far behind. Here it is told which are; only the
others are made again from exact logits (`exact`). So a decision is always that of the exact logits.

How far float32 logits may be from exact ones is measured by `benchmarks/stability.py` (docs/determinism.md): over all
batch shapes at most 1e-6 of the row's largest logit for the embedded model, 8e-6 for random models of other families.
`SLACK` is what a token's decision allows for; `CHOICE_SLACK` what the difference of two options' log-probabilities is
allowed, where every false alarm costs a forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmalign.lm.choosing import choice_from_logps
from mmalign.types import Choice

#: Error allowed for in a logit, as a share of the row's largest, and how many times the largest error seen so far.
SLACK, MANY_TIMES = 1e-4, 16
#: The same for what `choose` reads off, which shares most of its error.
CHOICE_SLACK, SOME_TIMES = 1e-5, 4
#: Error allowed for beside it: rounding of noise and of sums of probabilities.
_SUM_SLACK = 2.0**-16
#: Logits below this say that a model never writes the token.
FORBIDDEN = -1e4
#: Log-odds and log-mass of options are told in steps of this many nats, some 1.6 % of the odds.
GRID = 2.0**-6
#: Log-probabilities of texts are told in steps of this many nats.
FINE_GRID = 2.0**-18

#: Exact next-token logits (vocab,) of a row behind new tokens, given the logits found; None where there are none.
Referee = Callable[[int, Sequence[int], Tensor], Tensor | None]


def largest(logits: Tensor) -> Tensor:
    """The largest size of a logit in each row (..., vocab), (..., 1). Tokens that a model forbids do not count."""
    least = logits.amin(-1, keepdim=True)
    if (least < FORBIDDEN).any():
        return largest(logits.masked_fill(logits < FORBIDDEN, 0))
    return torch.maximum(logits.amax(-1, keepdim=True), -least)


def is_settled(
    scores: Tensor, noise: Tensor | float, slack: Tensor, top_k: Sequence[int], top_p: Tensor | None
) -> Tensor:
    """Whether a row's draw is the same for all scores within `slack` of these: bool (batch,).

    The draw is the argmax of score plus noise among the `top_k` best and, of those, the nucleus `top_p`.

    Args:
        scores: (batch, vocab) scores at their temperature, before anything is cut off.
        noise: (batch, vocab) noise, or 0 for greedy rows.
        slack: (batch, 1) largest error of a score.
        top_k: For each row; 0 or the vocabulary's size keeps all.
        top_p: (batch, 1), 1 keeps all; None where all rows keep all.
    """
    slack = slack + _SUM_SLACK
    noisy = scores + noise
    is_behind = noisy < noisy.amax(1, keepdim=True) - 2 * slack
    if top_p is None and not any(0 < k < scores.shape[1] for k in top_k):
        if is_behind.count_nonzero() == is_behind.numel() - len(is_behind):  # most often: one of each row is not behind
            return torch.ones_like(is_behind[:, 0])
        return is_behind.sum(1) == scores.shape[1] - 1
    limits = torch.tensor([[k if 0 < k < scores.shape[1] else scores.shape[1]] for k in top_k], device=scores.device)
    cuts_k = limits < scores.shape[1]
    best = noisy.topk(2, dim=1)
    is_ahead = best.values[:, :1] - best.values[:, 1:] > 2 * slack
    # Nearly always it is ahead of all tokens, even of those that are cut off, and far from being cut off itself.
    rivals = scores >= scores.gather(1, best.indices[:, :1]) - 2 * slack
    num_rivals = rivals.sum(1, keepdim=True)
    stays = num_rivals <= limits
    if top_p is not None:
        shares = scores.softmax(1)
        share = shares.gather(1, best.indices[:, :1]) + shares.masked_fill(rivals, 0).sum(1, keepdim=True)
        stays &= (top_p >= 1) | ((share - _margin(slack) > 1 - top_p) & ~cuts_k)
    settled = (is_ahead & (stays | (num_rivals == 1)))[:, 0]
    left = (~settled).nonzero()[:, 0]
    if len(left):
        noise = noise if isinstance(noise, float) else noise[left]
        nucleus = None if top_p is None else top_p[left]
        settled[left] = _is_settled_among(scores[left], noise, slack[left], limits[left], nucleus)
    return settled


def _is_settled_among(
    scores: Tensor, noise: Tensor | float, slack: Tensor, limits: Tensor, top_p: Tensor | None
) -> Tensor:
    """`is_settled` with a look at which tokens are, and which may be, left by the cuts."""
    surely = maybe = torch.ones_like(scores, dtype=torch.bool)
    if (limits < scores.shape[1]).any():
        surely, maybe = _top_k(scores, slack, limits)
    if top_p is not None:
        inside = scores.masked_fill(~maybe, -torch.inf)
        doubt = inside.softmax(1).masked_fill(surely, 0).sum(1, keepdim=True)
        in_nucleus, near_nucleus = _top_p(inside, slack, doubt, top_p)
        surely, maybe = surely & in_nucleus, maybe & near_nucleus
    best = (scores + noise).masked_fill(~maybe, -torch.inf).topk(2, dim=1)
    is_ahead = best.values[:, 0] - best.values[:, 1] > 2 * slack[:, 0]
    return is_ahead & surely.gather(1, best.indices[:, :1])[:, 0]


def _top_k(scores: Tensor, slack: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are surely, and which maybe, among the best of each row."""
    width = scores.shape[1]
    cuts = limits < width
    best = scores.topk(int(limits[cuts].max()) + 1, dim=1).values
    last = limits.clamp(max=best.shape[1] - 1) - 1
    surely = scores > best.gather(1, last + 1) + 2 * slack
    maybe = scores >= best.gather(1, last) - 2 * slack
    return surely | ~cuts, maybe | ~cuts


def _margin(slack: Tensor) -> Tensor:
    """How far the share of some tokens may be off."""
    return torch.expm1(2 * slack) + _SUM_SLACK


def _top_p(scores: Tensor, slack: Tensor, doubt: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are surely, and which maybe, in the nucleus of each row. `doubt` is the share of tokens that may be
    cut off before.

    A token is in the nucleus where it has, with all that are worse, more than 1 - top_p.
    """
    ascending, order = scores.sort(dim=1)
    own = ascending.softmax(1)
    below = torch.nn.functional.pad(own.cumsum(1), (1, 0))
    most = below.gather(1, torch.searchsorted(ascending, ascending + 2 * slack, right=True))
    least = below.gather(1, torch.searchsorted(ascending, ascending - 2 * slack)) + own
    margin = (1 + _margin(slack)) / (1 - doubt).clamp(min=1e-3) - 1
    leads = ascending[:, -1:] - 2 * slack
    surely = (least - margin > 1 - top_p) | (top_p >= 1)
    maybe = (most + margin > 1 - top_p) | (top_p >= 1) | (ascending >= leads)
    surely[:, -1:] |= ascending[:, -2:-1] < leads
    back = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return surely.gather(1, back), maybe.gather(1, back)


def settled_choice(logps: Sequence[float], slack: float) -> Choice | None:
    """The choice among options with these log-probabilities, in steps of `GRID`; None where `slack` leaves it open.

    Rounded are the log-odds against the best option, away from 0, so that it stays the only best one; and the log of
    the options' mass, to the nearest step. `slack` 0 is for exact log-probabilities, where there is always an answer.
    """
    if not math.isfinite(best := max(logps)) or any(map(math.isnan, logps)):
        return choice_from_logps(logps)
    odds = [(logp - best) / GRID for logp in logps]
    mass = best / GRID + math.log(math.fsum(math.exp(step * GRID) for step in odds)) / GRID
    first = logps.index(best)
    others = [step for number, step in enumerate(odds) if number != first and step > -math.inf]
    edges = [abs(step - round(step)) for step in others] + [abs(mass - math.floor(mass) - 0.5)]
    if slack and min(edges) * GRID <= slack:
        return None
    steps = [min(math.floor(step), -1) + 0.5 if step > -math.inf else step for step in odds]
    steps[first] = 0.0
    weights = [math.exp(step * GRID) for step in steps]
    probabilities = tuple(weight / math.fsum(weights) for weight in weights)
    return Choice(probabilities, min(1.0, math.exp(round(mass) * GRID)))


def told(logps: Sequence[float]) -> tuple[float, ...]:
    """Exact log-probabilities as they are told: in steps of `FINE_GRID`."""
    return tuple(round(logp / FINE_GRID) * FINE_GRID for logp in logps)
