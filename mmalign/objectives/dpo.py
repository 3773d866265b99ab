"""Direct preference optimisation, its two noise-aware forms, and DPO with a likelihood term or with weighted spans.

DPO: Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Conservative DPO: Mitchell 2023. rDPO: Chowdhury et al. 2024,
arXiv 2403.00409. DPO with a likelihood term: STIC stage 1, Deng et al. 2024, arXiv 2405.19716 (sum over tokens), and
TEMPLE, Li et al. 2025, arXiv 2503.16929 (pooled mean). Mask-DPO: Gu et al. 2025, arXiv 2503.02846.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmalign.objectives.checks import not_negative, one_of, positive, rate
from mmalign.objectives.ratios import log_ratio, preference_metrics
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import LossInputs, LossOutput, Need

NllReduction = Literal["sum", "token_mean", "pooled"]


@dataclass(frozen=True, kw_only=True)
class DPO:
    """softCE(beta D, q) - sft_weight * L(chosen), D = difference of summed log-ratios to the reference.

    Args:
        beta: How strongly the policy is held to the reference.
        label_smoothing: Assumed share eps of flipped labels (conservative DPO), in [0, 0.5); it joins the pair's own p
            as q = p (1 - eps) + (1 - p) eps.
        sft_weight: Weight of the chosen side's negative log-likelihood (STIC: 1/1024 with the sum).
        nll_reduction: Whether that likelihood is the sum over tokens, the mean over the pair's own tokens (token_mean),
            or the mean over all chosen tokens of an optimizer step (pooled; TRL's "sft", TEMPLE).
        changed_weight: Factor on tokens inside the spans where the two texts differ (APASI's gamma).
        unchanged_weight: Factor on tokens outside these spans; 0 is Mask-DPO.
    """

    name: ClassVar[str] = "dpo"
    formula: ClassVar[str] = "softCE(beta D, q) - sft_weight L(y_w)"
    source: ClassVar[str] = "Rafailov et al. 2023, arXiv 2305.18290, eq. 7"

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    nll_reduction: NllReduction = "sum"
    changed_weight: float = 1.0
    unchanged_weight: float = 1.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        rate(label_smoothing=self.label_smoothing)
        one_of(("sum", "token_mean", "pooled"), nll_reduction=self.nll_reduction)
        not_negative(
            sft_weight=self.sft_weight, changed_weight=self.changed_weight, unchanged_weight=self.unchanged_weight
        )

    @property
    def needs(self) -> frozenset[Need]:
        base: frozenset[Need] = frozenset(("chosen", "rejected", "reference"))
        if self.changed_weight == self.unchanged_weight == 1:
            return base
        return base | {"changed"} if self.unchanged_weight else base | {"changed", "phrases"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        weights = self.changed_weight, self.unchanged_weight
        chosen, rejected = (log_ratio(side, side.span_weights(*weights)) for side in (inputs.chosen, inputs.rejected))
        prob = inputs.p * (1 - self.label_smoothing) + (1 - inputs.p) * self.label_smoothing
        loss = soft_pair(chosen - rejected, prob, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        pooled: dict[str, Tensor] = {}
        if self.sft_weight:
            logps, mask = inputs.chosen.token_logps, inputs.chosen.mask
            metrics |= {
                "preference_loss": loss.detach(),
                "nll": -reduce_tokens(logps, mask, mean=self.nll_reduction != "sum").detach(),
            }
            if self.nll_reduction == "pooled":
                pooled["chosen"] = -self.sft_weight * reduce_tokens(logps, mask)
            else:
                loss = loss - self.sft_weight * reduce_tokens(logps, mask, mean=self.nll_reduction == "token_mean")
        return LossOutput(loss=loss, pooled=pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class RobustDPO:
    """DPO whose expectation under labels flipped at rate `flip_rate` is the loss on clean labels (rDPO).

    Unbounded below: expect negative values; keep the learning rate small. With a pair's own p the clean loss is mixed:
    q = p k + (1 - p)(1 - k), k = (1 - flip_rate) / (1 - 2 flip_rate).

    Args:
        beta: How strongly the policy is held to the reference.
        flip_rate: Share of labels taken to be wrong, in [0, 0.5).
    """

    name: ClassVar[str] = "rdpo"
    formula: ClassVar[str] = "softCE(beta D, (1 - flip_rate) / (1 - 2 flip_rate))"
    source: ClassVar[str] = "Chowdhury et al. 2024, arXiv 2403.00409"

    beta: float = 0.1
    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        rate(flip_rate=self.flip_rate)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "rejected", "reference"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        right = (1 - self.flip_rate) / (1 - 2 * self.flip_rate)
        prob = inputs.p * right + (1 - inputs.p) * (1 - right)
        loss = soft_pair(chosen - rejected, prob, self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class ConservativeDPO(DPO):
    """DPO with one label in ten taken to be flipped."""

    name: ClassVar[str] = "cdpo"
    formula: ClassVar[str] = "softCE(beta D, 1 - label_smoothing)"
    source: ClassVar[str] = "Mitchell 2023, a note on DPO with noisy preferences"

    label_smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SticDPO(DPO):
    """DPO with the chosen text's likelihood: its sum over tokens, divided by a constant and not by the length."""

    name: ClassVar[str] = "stic_dpo"
    formula: ClassVar[str] = "-s(beta D) - L(y_w) / 1024"
    source: ClassVar[str] = "STIC stage 1, Deng et al. 2024, arXiv 2405.19716"

    sft_weight: float = 1 / 1024


@dataclass(frozen=True, kw_only=True)
class MaskDPO(DPO):
    """DPO on the tokens of the marked spans only: factual ones of the chosen text, wrong ones of the rejected."""

    name: ClassVar[str] = "mask_dpo"
    formula: ClassVar[str] = "-s(beta (sum m_w lr_w - sum m_l lr_l))"
    source: ClassVar[str] = "Gu et al. 2025, arXiv 2503.02846"

    unchanged_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cream(DPO):
    """DPO whose label counts as much as two rounds of the model rank alike: p is (Kendall's tau + 1) / 2.

    The pairs carry p; `mmalign.objectives.labels.kendall_consistency` makes it, of one prompt or averaged over all.
    """

    name: ClassVar[str] = "cream"
    formula: ClassVar[str] = "softCE(beta D, p), p = (tau + 1) / 2"
    source: ClassVar[str] = "CREAM, Wang et al. 2024, arXiv 2410.12735"


@dataclass(frozen=True, kw_only=True)
class UPO(DPO):
    """DPO whose label counts less where an estimator is unsure, with the chosen text's mean likelihood.

    The pairs carry p = 1 - alpha; `mmalign.objectives.labels.upo_alpha` makes alpha. As printed, the paper's alpha
    would always favour the reversed label and its likelihood term would lower the likelihood; neither is done here.
    """

    name: ClassVar[str] = "upo"
    formula: ClassVar[str] = "softCE(beta D, p) - sft_weight L(y_w) / n_w, p = 1 - alpha(uncertainty)"
    source: ClassVar[str] = "UPO, uncertainty-enhanced preference optimisation, 2024"

    sft_weight: float = 0.5
    nll_reduction: NllReduction = "token_mean"


@dataclass(frozen=True, kw_only=True)
class CurryDPO(DPO):
    """DPO; the pairs' stages, easiest first, are made by `mmalign.objectives.schedules.curry_stages`."""

    name: ClassVar[str] = "curry_dpo"
    formula: ClassVar[str] = "-s(beta D), pairs from the largest to the smallest score gap"
    source: ClassVar[str] = "Pattnaik et al. 2024, arXiv 2403.07230"


@dataclass(frozen=True, kw_only=True)
class TwoStageMPO(DPO):
    """DPO on the easy pairs; `schedules.mpo_split` parts them, the prompts of the hard ones are for RL ("grpo")."""

    name: ClassVar[str] = "mpo_two_stage"
    formula: ClassVar[str] = "-s(beta D) where r_w - r_l > gamma"
    source: ClassVar[str] = "Mixed preference optimisation, 2024"


@dataclass(frozen=True, kw_only=True)
class TemporalDPO(DPO):
    """DPO with the rejected answer from the past model and the chosen one from a future one.

    `mmalign.objectives.schedules.temporal_pair` picks them.
    """

    name: ClassVar[str] = "temporal_dpo"
    formula: ClassVar[str] = "-s(beta D), y_l of the first model, y_w of the next"
    source: ClassVar[str] = "Temporal self-rewarding language models, 2025"


@dataclass(frozen=True, kw_only=True)
class RewardAugmentedDPO(DPO):
    """DPO on pairs whose prompt names the score to aim at; `schedules.goal_pairs` makes two of each pair."""

    name: ClassVar[str] = "reward_augmented_dpo"
    formula: ClassVar[str] = "-s(beta D) given a goal g in the prompt, labels by -(r - g)^2"
    source: ClassVar[str] = "Reward-augmented data, Zhang et al. 2024, arXiv 2410.08067"
