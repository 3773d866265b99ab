"""Refined regularised preference optimisation: only the phrases that differ are rewarded, the rest is held in place.

Sarkar et al. 2025, arXiv 2504.12083. The page prints -E[log s(u) + alpha KL], which read literally would reward
divergence; the authors' code adds alpha KL to the loss, and so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmalign.objectives.checks import not_negative, positive
from mmalign.objectives.ratios import log_ratio, preference_metrics
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class RRPO:
    """softCE(beta D, p) + alpha KL(reference || policy), D = difference of log-ratios summed over the changed phrases.

    The KL is exact over the vocabulary and summed over all tokens of the chosen text, so it grows with length. A side
    without a phrase adds nothing to D.

    Args:
        beta: Scale of the phrase rewards (the authors: 0.1 to 0.9).
        alpha: Weight of the KL (the authors: 0.01 to 0.1); 0 leaves it out, which is Mask-DPO.
    """

    name: ClassVar[str] = "rrpo"
    formula: ClassVar[str] = "softCE(beta (sum over phrases of lr_w - lr_l), p) + alpha KL(ref || policy on y_w)"
    source: ClassVar[str] = "Sarkar et al. 2025, arXiv 2504.12083"

    beta: float = 0.5
    alpha: float = 0.05

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(alpha=self.alpha)

    @property
    def needs(self) -> frozenset[Need]:
        base: frozenset[Need] = frozenset(("chosen", "rejected", "reference", "changed", "phrases"))
        return base | {"divergence"} if self.alpha else base

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = (log_ratio(side, side.span_weights(1.0, 0.0)) for side in (inputs.chosen, inputs.rejected))
        loss = soft_pair(chosen - rejected, inputs.p, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        metrics |= {"preference_loss": loss.detach()}
        for name, side in (("chosen", inputs.chosen), ("rejected", inputs.rejected)):
            assert side.changed is not None
            metrics[f"{name}_phrase_tokens"] = (side.changed & side.mask).sum(-1).to(loss.dtype)
        if self.alpha:
            divergence, mask = inputs.chosen.divergence, inputs.chosen.mask
            loss = loss + self.alpha * reduce_tokens(divergence, mask)
            metrics["kl"] = reduce_tokens(divergence, mask).detach()
            metrics["kl_per_token"] = reduce_tokens(divergence, mask, mean=True).detach()
        return LossOutput(loss=loss, metrics=metrics)
