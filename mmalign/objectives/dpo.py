"""Direct preference optimisation, its two noise-aware forms, and DPO with a likelihood term.

DPO: Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Conservative DPO: Mitchell 2023. rDPO: Chowdhury et al. 2024,
arXiv 2403.00409. DPO with a likelihood term: STIC stage 1, Deng et al. 2024, arXiv 2405.19716.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need

NllReduction = Literal["sum", "token_mean"]


@dataclass(frozen=True, kw_only=True)
class DPO:
    """softCE(beta D, q) - sft_weight * L(chosen), D = difference of summed log-ratios to the reference.

    Args:
        beta: How strongly the policy is held to the reference.
        label_smoothing: Assumed share eps of flipped labels (conservative DPO), in [0, 0.5); it joins the pair's own p
            as q = p (1 - eps) + (1 - p) eps.
        sft_weight: Weight of the chosen side's negative log-likelihood (STIC: 1/1024 with the sum).
        nll_reduction: Whether that likelihood is the sum over tokens or the mean over the pair's own tokens.
        changed_weight: Factor on tokens inside the spans where the two texts differ (APASI's gamma).
    """

    name: ClassVar[str] = "dpo"

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    nll_reduction: NllReduction = "sum"
    changed_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, "beta", self.beta, "more than 0")
        _require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "at least 0 and below 0.5")
        _require(self.sft_weight >= 0, "sft_weight", self.sft_weight, "0 or more")
        _require(self.nll_reduction in ("sum", "token_mean"), "nll_reduction", self.nll_reduction, "sum or token_mean")
        _require(self.changed_weight >= 0, "changed_weight", self.changed_weight, "0 or more")

    @property
    def needs(self) -> frozenset[Need]:
        base: frozenset[Need] = frozenset(("chosen", "rejected", "reference"))
        return base | {"changed"} if self.changed_weight != 1 else base

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen = log_ratio(inputs.chosen, self.changed_weight)
        rejected = log_ratio(inputs.rejected, self.changed_weight)
        prob = inputs.p * (1 - self.label_smoothing) + (1 - inputs.p) * self.label_smoothing
        loss = soft_pair(chosen - rejected, prob, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        if self.sft_weight:
            nll = -reduce_tokens(inputs.chosen.token_logps, inputs.chosen.mask, mean=self.nll_reduction == "token_mean")
            metrics |= {"preference_loss": loss.detach(), "nll": nll.detach()}
            loss = loss + self.sft_weight * nll
        return LossOutput(loss=loss, metrics=metrics)


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

    beta: float = 0.1
    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        _require(self.beta > 0, "beta", self.beta, "more than 0")
        _require(0 <= self.flip_rate < 0.5, "flip_rate", self.flip_rate, "at least 0 and below 0.5")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "rejected", "reference"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        right = (1 - self.flip_rate) / (1 - 2 * self.flip_rate)
        prob = inputs.p * right + (1 - inputs.p) * (1 - right)
        loss = soft_pair(chosen - rejected, prob, self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


def log_ratio(side: Completions, changed_weight: float = 1.0) -> Tensor:
    """Summed log-ratio of policy to reference (B,); tokens in changed spans count `changed_weight` times.

    Policy and reference are summed before they are subtracted, the order in which TRL rounds.
    """
    weight = None
    if changed_weight != 1:
        if side.changed is None:
            raise ValueError("changed_weight needs the changed spans of both texts")
        weight = torch.where(side.changed, changed_weight, 1.0).to(side.token_logps.dtype)
    policy = reduce_tokens(side.token_logps, side.mask, weight)
    return policy - reduce_tokens(side.reference, side.mask, weight)


@torch.no_grad()
def preference_metrics(inputs: LossInputs, chosen: Tensor, rejected: Tensor, beta: float) -> dict[str, Tensor]:
    """What a preference run is watched by: rewards are beta times the log-ratios (B,) given."""
    return {
        "chosen_reward": beta * chosen,
        "rejected_reward": beta * rejected,
        "margin": beta * (chosen - rejected),
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "chosen_logps": reduce_tokens(inputs.chosen.token_logps, inputs.chosen.mask),
        "rejected_logps": reduce_tokens(inputs.rejected.token_logps, inputs.rejected.mask),
        "chosen_logps_change": chosen.clone(),
        "rejected_logps_change": rejected.clone(),
    }


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")
