"""Pair losses without a reference model: CPO, SimPO, ORPO and triple preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.objectives.checks import not_negative, rate
from mmalign.objectives.pairwise import PairLoss
from mmalign.objectives.ratios import log_prob
from mmalign.objectives.terms import soft_pair
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class CPO(PairLoss):
    """DPO without a reference, with the chosen text's likelihood in its place.

    Args:
        beta: Scale of the difference of log-probs.
        gamma: Margin that the scaled difference is to reach.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
        sft_weight: Weight of the chosen side's negative log-likelihood, a mean over all tokens of a step.
    """

    name: ClassVar[str] = "cpo"
    formula: ClassVar[str] = "softCE(beta (L_w - L_l) - gamma, 1 - label_smoothing) + sft_weight NLL(y_w)"
    source: ClassVar[str] = "Xu et al. 2024, arXiv 2401.08417"
    reference: ClassVar[bool] = False
    #: The side whose likelihood is raised.
    liked: ClassVar[str] = "chosen"

    gamma: float = 0.0
    label_smoothing: float = 0.0
    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(label_smoothing=self.label_smoothing)
        not_negative(gamma=self.gamma, sft_weight=self.sft_weight)

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return soft_pair(chosen - rejected, 1 - self.label_smoothing, self.beta, -self.gamma)

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        output = super().__call__(inputs)
        if not self.sft_weight:
            return output
        side = inputs.side(self.liked)
        metrics = {**output.metrics, "preference_loss": output.loss.detach()}
        metrics["nll"] = -log_prob(side, mean=True).detach()
        return LossOutput(loss=output.loss, pooled={self.liked: -self.sft_weight * log_prob(side)}, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class SimPO(CPO):
    """Token means, scaled, with a margin."""

    name: ClassVar[str] = "simpo"
    formula: ClassVar[str] = "-s(beta (L_w / n_w - L_l / n_l) - gamma)"
    source: ClassVar[str] = "Meng et al. 2024, arXiv 2405.14734"
    mean: ClassVar[bool] = True

    beta: float = 2.0
    gamma: float = 0.5
    sft_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ORPO(CPO):
    """Fine-tuning with the odds of chosen against rejected; beta is the weight of the odds, not their scale."""

    name: ClassVar[str] = "orpo"
    formula: ClassVar[str] = "-beta s(log odds_w - log odds_l) + sft_weight NLL(y_w), odds of token means"
    source: ClassVar[str] = "Hong et al. 2024, arXiv 2403.07691"
    mean: ClassVar[bool] = True

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = _log_odds(chosen) - _log_odds(rejected)
        return self.beta * soft_pair(margin, 1 - self.label_smoothing, 1.0, -self.gamma)


@dataclass(frozen=True, kw_only=True)
class TPO(CPO):
    """CPO whose likelihood is that of a third, best answer: the side "gold"."""

    name: ClassVar[str] = "tpo"
    formula: ClassVar[str] = "-s(beta (L_w - L_l)) + sft_weight NLL(gold)"
    source: ClassVar[str] = "Triple preference optimisation, Saeidi et al. 2024, arXiv 2405.16681"
    liked: ClassVar[str] = "gold"

    beta: float = 0.01

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"side:gold"} if self.sft_weight else super().needs


@dataclass(frozen=True, kw_only=True)
class LengthTPO(TPO):
    """Triple preference optimisation on token means with a margin."""

    name: ClassVar[str] = "tpo_l"
    formula: ClassVar[str] = "-s(beta (L_w / n_w - L_l / n_l) - gamma) + sft_weight NLL(gold)"
    mean: ClassVar[bool] = True

    gamma: float = 0.5


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of a mean log-prob; a certain text counts as all but certain."""
    log_prob = log_prob.clamp(max=-1e-6)
    return log_prob - torch.log(-torch.expm1(log_prob))
