"""Pair losses steered by other models: by their log-probs, or by a reward model's gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mmalign.objectives.checks import not_negative, one_of, positive
from mmalign.objectives.noisy import PAIRS
from mmalign.objectives.ratios import log_prob, log_ratio, preference_metrics
from mmalign.objectives.shaping import infifpo_source, scaled_beta
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class InfiFPO:
    """DPO on token means against a fusion of several models in place of the reference, which is one of them.

    The pairs' values "chosen_sources" and "rejected_sources" (N numbers each) are the models' mean log-probs per token
    of their own, so vocabularies may differ.

    Args:
        beta: Scale of the margin.
        fusion: max_margin takes, for every text, the source farthest from the policy; mean takes their mean.
    """

    name: ClassVar[str] = "infifpo"
    formula: ClassVar[str] = "-s(beta [(L_w/n_w - F_w) - (L_l/n_l - F_l)]), F a fusion of clipped sources"
    source: ClassVar[str] = "InfiFPO, 2025, arXiv 2505.13878"

    beta: float = 2.5
    fusion: Literal["max_margin", "mean"] = "max_margin"

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        one_of(("max_margin", "mean"), fusion=self.fusion)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"value:chosen_sources", "value:rejected_sources"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        scores = []
        for name, side in (("chosen", inputs.chosen), ("rejected", inputs.rejected)):
            now = log_prob(side, mean=True)
            initial = reduce_tokens(side.reference, side.mask, mean=True)
            sources = inputs.value(f"{name}_sources").to(now)
            mean = self.fusion == "mean"
            scores.append(now - infifpo_source(now.detach(), initial, sources, chosen=name == "chosen", mean=mean))
        loss = soft_pair(scores[0] - scores[1], inputs.p, self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, scores[0], scores[1], self.beta))


@dataclass(frozen=True, kw_only=True)
class DynamicDPO:
    """DPO whose beta grows with the pair's reward gap, its value "gap", with the chosen text's likelihood.

    As in the paper; the released trainer scales by statistics of the batch instead, and a negative gap there lowers
    beta below its base.

    Args:
        beta: Beta of a pair without a gap.
        most: Beta grows by at most this share.
        rate: How fast it grows with the gap.
        sft_weight: Weight of the chosen side's negative log-likelihood, a mean over all tokens of a step.
    """

    name: ClassVar[str] = "mm_dpo"
    formula: ClassVar[str] = "-s(beta (1 + most (1 - exp(-rate gap))) D) + sft_weight NLL(y_w)"
    source: ClassVar[str] = "MM-RLHF, Zhang et al. 2025, arXiv 2502.10391"

    beta: float = 0.1
    most: float = 0.5
    rate: float = 0.5
    sft_weight: float = 0.25

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(most=self.most, rate=self.rate, sft_weight=self.sft_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"value:gap"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        beta = scaled_beta(inputs.value("gap"), self.beta, self.most, self.rate).to(chosen)
        loss = soft_pair(chosen - rejected, inputs.p, beta)
        metrics = preference_metrics(inputs, chosen, rejected, beta) | {"beta": beta}
        pooled = {"chosen": -self.sft_weight * log_prob(inputs.chosen)} if self.sft_weight else {}
        return LossOutput(loss=loss, pooled=pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class PoFT:
    """Fine-tuning in which a text counts less where aligned models find it unlikely, or less likely than the policy.

    The pairs' value "teacher_means" (M numbers, NaN where one is missing) are their mean log-probs per token.

    Args:
        beta: Scale of the difference.
        gamma: Offset; more lowers the weight of every text.
    """

    name: ClassVar[str] = "poft"
    formula: ClassVar[str] = "-s(beta (L/n - mean_j L_j/n_j) + gamma)"
    source: ClassVar[str] = "Preference-oriented supervised fine-tuning, Fan et al. 2024, arXiv 2412.12865"

    beta: float = 1.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "value:teacher_means"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        own = log_prob(inputs.chosen, mean=True)
        teachers = inputs.value("teacher_means").to(own)
        theirs = torch.where(teachers.isnan().all(-1), 0.0, teachers.nanmean(-1))
        loss = soft_pair(own - theirs, 1.0, self.beta, self.gamma)
        metrics = {
            "chosen_logps": log_prob(inputs.chosen).detach(),
            "nll": -own.detach(),
            "margin": self.beta * (own.detach() - theirs),
        }
        return LossOutput(loss=loss, metrics={**metrics, "accuracy": (own > theirs).to(loss.dtype)})
