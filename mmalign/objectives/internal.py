"""DPO with what the model itself says of an answer: which of two is better, how much of it is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.objectives.checks import not_negative, positive
from mmalign.objectives.labels import agreement_mask
from mmalign.objectives.noisy import PAIRS
from mmalign.objectives.ratios import log_prob, log_ratio, preference_metrics
from mmalign.objectives.terms import bernoulli_consistency, bernoulli_entropy, reduce_tokens, soft_pair, softmax_ce
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class SCIR:
    """Two judges within one model, its verdict in words and its implicit reward, are to agree and be sure.

    DPO runs on the pairs on which they agree, with the label that they agree on. The sides "verdict_chosen" and
    "verdict_rejected" (B, 2, T) are the judge's answers that name the one or the other text, in both orders of the two.
    Sureness and agreement alone are met by any constant verdict: keep both orders, and pairs with known labels.

    Args:
        beta: How strongly the policy is held to the reference.
        consistency_weight: Weight of the symmetric KL of the judges.
        entropy_weight: Weight of the mean of their entropies, within that of the consistency.
        clip: The judges' probabilities are held this far from 0 and 1.
    """

    name: ClassVar[str] = "scir"
    formula: ClassVar[str] = (
        "-s(+-beta D) where both agree, + c (KL(p_g, p_i) + KL(p_i, p_g) + c_H (H(p_g) + H(p_i))) / 2"
    )
    source: ClassVar[str] = "Self-consistent internal rewards, Zhou et al. 2025, arXiv 2502.08922"

    beta: float = 0.1
    consistency_weight: float = 1.0
    entropy_weight: float = 1.0
    clip: float = 1e-4

    def __post_init__(self) -> None:
        positive(beta=self.beta, clip=self.clip)
        not_negative(consistency_weight=self.consistency_weight, entropy_weight=self.entropy_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"side:verdict_chosen", "side:verdict_rejected", "whole_step"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        named = log_prob(inputs.side("verdict_chosen")) - log_prob(inputs.side("verdict_rejected"))
        told, implied = named.sigmoid().mean(-1), (self.beta * (chosen - rejected)).sigmoid()
        told, implied = (p.clamp(self.clip, 1 - self.clip) for p in (told, implied))
        agreed = agreement_mask(told, implied)
        label = (told > 0.5).to(told.dtype)
        # The trainer averages over all pairs; the mean is over those that are kept.
        share = agreed.to(told.dtype) * len(agreed) / agreed.sum().clamp(min=1)
        preference = share * soft_pair(chosen - rejected, label, self.beta)
        kl = bernoulli_consistency(told.logit(), implied.logit())
        entropy = 0.5 * (bernoulli_entropy(told.logit()) + bernoulli_entropy(implied.logit()))
        loss = preference + self.consistency_weight * (kl + self.entropy_weight * entropy)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        metrics |= {"agreed": agreed.to(told.dtype), "symmetric_kl": kl.detach(), "entropy": entropy.detach()}
        return LossOutput(loss=loss, metrics=metrics | {"preference_loss": preference.detach()})


@dataclass(frozen=True, kw_only=True)
class PreferenceDegree:
    """DPO, and a head that tells how many of an answer's key phrases were taken out.

    The side "degraded" holds versions of the pair's answers (B, K, T) with the head's logits as scores (B, K, d); the
    pairs' value "degrees" (B, K) is what was taken out of each, 0 = nothing.

    Args:
        beta: How strongly the policy is held to the reference.
        gamma: Weight of the head's cross-entropy.
    """

    name: ClassVar[str] = "spo_degree"
    formula: ClassVar[str] = "-s(beta D) + gamma mean CE(degree head, degree)"
    source: ClassVar[str] = "Self-supervised preference optimisation, Li et al. 2024, arXiv 2409.17791"

    beta: float = 0.1
    gamma: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(gamma=self.gamma)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"side:degraded", "head:degree", "value:degrees"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        degraded, degrees = inputs.side("degraded"), inputs.value("degrees").long()
        told = reduce_tokens(softmax_ce(degraded.scores, degrees), degraded.present, mean=True)
        loss = soft_pair(chosen - rejected, inputs.p, self.beta) + self.gamma * told
        right: Tensor = (degraded.scores.argmax(-1) == degrees).to(loss.dtype)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        metrics |= {
            "degree_loss": told.detach(),
            "degree_accuracy": reduce_tokens(right, degraded.present, mean=True),
        }
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class Regret:
    """A logistic loss on two regrets, or any two costs, that the model's head gives.

    Needs a head whose score is the regret of a completion.
    """

    name: ClassVar[str] = "regret"
    formula: ClassVar[str] = "-s(regret_l - regret_w)"
    source: ClassVar[str] = (
        "Models of human preference for learning reward functions, Knox et al. 2022, arXiv 2206.02231"
    )
    scores_only: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "rejected", "head:scalar"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = inputs.chosen.scores, inputs.rejected.scores
        loss = soft_pair(rejected - chosen, inputs.p)
        with torch.no_grad():
            margin = rejected - chosen
        return LossOutput(loss=loss, metrics={"margin": margin, "accuracy": (margin > 0).to(loss.dtype)})
