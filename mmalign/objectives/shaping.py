"""Rewards, advantages, weights and choices: numbers that steer an objective and carry no gradient."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def win_rates(preferences: Tensor, *, include_self: bool) -> Tensor:
    """Mean probability (..., K) of beating the others, of `preferences` (..., K, K), P_ij = P(answer i beats j).

    With itself an answer counts 1/2. Raises ValueError for a single answer that is not to be compared with itself.
    """
    count = preferences.shape[-1]
    diagonal = torch.eye(count, dtype=torch.bool, device=preferences.device)
    if include_self:
        return preferences.masked_fill(diagonal, 0.5).mean(-1)
    if count < 2:
        raise ValueError("there is 1 answer; a win rate takes 2 or more")
    return preferences.masked_fill(diagonal, 0.0).sum(-1) / (count - 1)


@torch.no_grad()
def preferences_of(scores: Tensor) -> Tensor:
    """Bradley-Terry probabilities (..., K, K) of scores (..., K)."""
    return (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid()


@torch.no_grad()
def scaled_beta(gap: Tensor, beta: float, most: float, rate: float) -> Tensor:
    """MM-DPO's beta (B,), from beta to beta (1 + most) as the reward gap grows; a negative gap counts as none."""
    return beta * (1 + most * (1 - (-rate * gap.clamp(min=0)).exp()))


@torch.no_grad()
def infifpo_source(now: Tensor, initial: Tensor, sources: Tensor, *, chosen: bool, mean: bool = False) -> Tensor:
    """The log-prob per token (B,) that stands for all source models: `sources` (B, N) and the initial policy (B,).

    A source below the initial policy on a chosen text (above it on a rejected one) counts as the initial policy. Of
    these the one whose probability is farthest from the current policy's `now` (B,) is taken, or the mean of all.
    """
    first = initial.unsqueeze(-1)
    bound = torch.maximum if chosen else torch.minimum
    clipped = torch.cat((first, bound(sources, first.expand_as(sources))), -1)
    if mean:
        return clipped.mean(-1)
    far = (clipped.exp() - now.exp().unsqueeze(-1)).abs()
    return clipped.gather(-1, far.argmax(-1, keepdim=True)).squeeze(-1)


@torch.no_grad()
def lambda_weights(scores: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """LiPO's weights (B, K, K): |G_i - G_j| |d_i - d_j| where label i is above label j, else 0.

    Gains G = 2^label - 1, discounts d = 1 / log(1 + rank) by the current scores (B, K), ties broken by index.
    """
    ordered = scores.masked_fill(~present, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    discount = 1 / torch.log(2.0 + ordered.argsort(-1).to(scores.dtype))
    gain = torch.exp2(labels) - 1
    weight = (_differences(gain) * _differences(discount)).abs()
    return weight.masked_fill(~(labels.unsqueeze(-1) > labels.unsqueeze(-2)) | ~_both(present), 0.0)


@torch.no_grad()
def sar_reward(alone: Tensor, answered: Tensor) -> Tensor:
    """How much likelier an answer is for the question, in [-1, 1], from its mean log-probs without and with it."""
    return (1 - (alone - answered).clamp(max=50).exp()).clamp(-1, 1)


@torch.no_grad()
def score_rewards(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """SCoRe's reward of the second turn: its own and alpha times its progress over the first."""
    return second + alpha * (second - first)


@torch.no_grad()
def group_advantage(rewards: Tensor, *, normalise: bool = True) -> Tensor:
    """Rewards (B, K) less their mean, by their sample standard deviation; 0 where all are equal, or one is alone.

    A deviation below 1e-4 counts as that much: what is left of rounding must not be blown up.
    """
    centred = _centred(rewards)
    if not normalise:
        return centred
    variance = (centred**2).sum(-1, keepdim=True) / max(1, rewards.shape[-1] - 1)
    return centred / variance.sqrt().clamp(min=1e-4)


@torch.no_grad()
def left_out_advantage(rewards: Tensor) -> Tensor:
    """Rewards (B, K) less the mean of the other answers' rewards."""
    count = rewards.shape[-1]
    if count < 2:
        raise ValueError("there is 1 answer; leaving one out takes 2 or more")
    return _centred(rewards) * count / (count - 1)


@torch.no_grad()
def hardness(similarity: Tensor, gaps: Tensor, threshold: float) -> Tensor:
    """DR-IRL's factor (B, K) on advantages: the data's hardness times the model's responsiveness.

    `similarity` (B, K) to the demonstration, NaN where there is none; `gaps` (B, K), reward of the answer less that of
    the demonstration, of which those farther than `threshold` (squared) from their mean are left out.
    """
    known = ~similarity.isnan()
    distance = torch.where(known, 1 - similarity, 0.0)
    mean = distance.sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    data = torch.where(known, distance.sigmoid() / mean.sigmoid(), 1.0)
    middle = gaps.mean(-1, keepdim=True)
    kept = (gaps - middle) ** 2 <= threshold
    inner = torch.where(kept, gaps, 0.0).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
    model = torch.where(kept.any(-1, keepdim=True), inner.sigmoid() / middle.sigmoid(), 1.0)
    return data * model


@torch.no_grad()
def small_loss(loss: Tensor, keep: float) -> Tensor:
    """Which pairs (B,) are the share `keep` of lowest loss; at least one."""
    count = max(1, int(keep * len(loss) + 0.5))
    mask = torch.zeros_like(loss, dtype=torch.bool)
    mask[loss.argsort(stable=True)[:count]] = True
    return mask


@torch.no_grad()
def min_norm_weights(gradients: Tensor, steps: int = 50) -> Tensor:
    """The point of the simplex (K,) whose mixture of gradients (K, P) is shortest, by Frank-Wolfe (exact for K = 2)."""
    count = len(gradients)
    products = gradients @ gradients.T
    weights = torch.full((count,), 1 / count, dtype=gradients.dtype, device=gradients.device)
    if count == 2:
        gap = products[0, 0] - 2 * products[0, 1] + products[1, 1]
        if gap <= torch.finfo(gradients.dtype).tiny:
            return weights
        first = ((products[1, 1] - products[0, 1]) / gap).clamp(0, 1)
        return torch.stack((first, 1 - first))
    for _ in range(steps):
        toward = products @ weights
        index = int(toward.argmin())
        here, there, cross = weights @ toward, products[index, index], toward[index]
        gap = here - 2 * cross + there
        if gap <= torch.finfo(gradients.dtype).tiny:
            break
        share = ((here - cross) / gap).clamp(0, 1)
        weights = (1 - share) * weights
        weights[index] += share
    return weights


@torch.no_grad()
def ches_similarity(chosen: Tensor, rejected: Tensor) -> Tensor:
    """<H_w, H_l> - <H_w, H_w> (B,) of summed hidden states (B, H): pairs high in it displace likelihood; a filter."""
    return (chosen * rejected).sum(-1) - (chosen * chosen).sum(-1)


@torch.no_grad()
def ranking_difficulty(reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """The log-ratio margin D (B,) at which the policy itself begins to rank the pair right."""
    return reference_rejected - reference_chosen


@torch.no_grad()
def directed_reward(rewards: Tensor, direction: Tensor) -> Tensor:
    """Multi-objective rewards (..., R) along a unit direction (R,), the one that is named in the prompt."""
    return rewards @ direction


@torch.no_grad()
def curation_weights(rewards: Tensor) -> Tensor:
    """Probabilities (..., K) with which one of K answers is picked for retraining."""
    return rewards.softmax(-1)


def _centred(values: Tensor) -> Tensor:
    """Values (..., K) less their mean, which is exactly 0 where all are equal."""
    shifted = values - values[..., :1]
    return shifted - shifted.mean(-1, keepdim=True)


def _differences(values: Tensor) -> Tensor:
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _both(present: Tensor) -> Tensor:
    return present.unsqueeze(-1) & present.unsqueeze(-2)
