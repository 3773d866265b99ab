"""Objectives that weigh tokens one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.objectives.checks import not_negative, positive
from mmalign.objectives.distributions import agreement
from mmalign.objectives.noisy import PAIRS
from mmalign.objectives.ratios import log_prob, log_ratio, preference_metrics
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need, TokenTerm


@dataclass(frozen=True, kw_only=True)
class SAIL:
    """DPO in which a token that a preference-tuned model likes counts more when chosen and less when rejected.

    The tokens' value "reward" is that model's log-prob less the reference's. Weights below 0 count as 0.

    Args:
        beta: How strongly the policy is held to the reference.
        strength: How much the token rewards count; 0 is DPO.
    """

    name: ClassVar[str] = "sail"
    formula: ClassVar[str] = "-s(sum beta (1 + a beta r) lr_w - sum beta (1 - a beta r) lr_l)"
    source: ClassVar[str] = "SAIL, token-weighted DPO, 2025"

    beta: float = 0.1
    strength: float = 0.5

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(strength=self.strength)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"tokens:reward"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        factor = self.strength * self.beta
        weights = [(1 + sign * factor * side.tokens("reward")).clamp(min=0) for side, sign in self._signed(inputs)]
        scores = [log_ratio(side, weight) for (side, _), weight in zip(self._signed(inputs), weights, strict=True)]
        loss = soft_pair(scores[0] - scores[1], inputs.p, self.beta)
        metrics = preference_metrics(inputs, scores[0], scores[1], self.beta)
        for name, weight, (side, _) in zip(("chosen", "rejected"), weights, self._signed(inputs), strict=True):
            metrics[f"{name}_weight"] = reduce_tokens(weight, side.mask, mean=True)
        return LossOutput(loss=loss, metrics=metrics)

    @staticmethod
    def _signed(inputs: LossInputs) -> tuple[tuple[Completions, int], tuple[Completions, int]]:
        return (inputs.chosen, 1), (inputs.rejected, -1)


@dataclass(frozen=True, kw_only=True)
class CUT:
    """Unlikelihood of the tokens that a judgement of the answer makes likelier: these are its mistakes.

    The side "judged" is the chosen text, token for token, with the judgement in its context; a good answer has none and
    is learnt as it is. Means run over all tokens of a step.

    Args:
        threshold: A token is a mistake when the judgement raises its probability by more than this factor.
        alpha: Weight of the unlikelihood (the authors: 1 offline, 0.5 online with threshold 1.2).
    """

    name: ClassVar[str] = "cut"
    formula: ClassVar[str] = "(mean[mistake ? -alpha log(1 - p(y|x)) : -log p(y|x)] - mean log p(y|x, judgement)) / 2"
    source: ClassVar[str] = "Contrastive unlikelihood training, Xu et al. 2023, arXiv 2312.14591"

    threshold: float = 1.1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        positive(threshold=self.threshold)
        not_negative(alpha=self.alpha)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "side:judged"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        plain, judged = inputs.chosen, inputs.side("judged")
        both = plain.mask & judged.mask
        gain = (judged.token_logps - plain.token_logps).detach().masked_fill(~both, 0.0)
        mistake = both & (gain > math.log(self.threshold))
        values = token_unlikelihood(plain.token_logps, mistake, self.alpha)
        half = torch.where(judged.present, 0.5, 1.0)
        pooled = {
            "chosen": half * reduce_tokens(values, plain.mask),
            "judged": -0.5 * reduce_tokens(judged.token_logps, judged.mask),
        }
        metrics = {
            "chosen_logps": log_prob(plain).detach(),
            "nll": -reduce_tokens(plain.token_logps, plain.mask, mean=True).detach(),
            "judged_nll": -reduce_tokens(judged.token_logps, judged.mask, mean=True).detach(),
            "mistakes": reduce_tokens(mistake.to(half.dtype), plain.mask, mean=True),
        }
        return LossOutput(loss=torch.zeros_like(pooled["chosen"]), pooled=pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class WPO:
    """DPO in which a pair counts as much as the policy would say its texts itself, as if it had been sampled from it.

    Args:
        beta: How strongly the policy is held to the reference.
    """

    name: ClassVar[str] = "wpo"
    formula: ClassVar[str] = "-w_w w_l s(beta D), w = exp mean [log p(y) - log sum_v p(v)^2] without gradient"
    source: ClassVar[str] = "Zhou et al. 2024, arXiv 2406.11827, eq. 2"

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"logits:policy"}

    @property
    def token_terms(self) -> dict[str, TokenTerm]:
        """How peaked the policy is at every token."""
        return {"chosen": TokenTerm(agreement), "rejected": TokenTerm(agreement)}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        aligned = [
            reduce_tokens((side.token_logps - side.term("log_agreement")).detach(), side.mask, mean=True)
            for side in (inputs.chosen, inputs.rejected)
        ]
        weight = (aligned[0] + aligned[1]).exp()
        loss = weight * soft_pair(chosen - rejected, inputs.p, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta) | {"on_policy_weight": weight}
        return LossOutput(loss=loss, metrics=metrics)


def token_unlikelihood(logps: Tensor, flags: Tensor, alpha: float) -> Tensor:
    """-alpha log(1 - p) where flagged, else -log p, of log-probs and bool flags (B, T); p = 1 counts as just below."""
    wrong = -torch.log(-torch.expm1(logps.clamp(max=-1e-6)))
    return torch.where(flags, alpha * wrong, -logps)
