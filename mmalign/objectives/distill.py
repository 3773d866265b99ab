"""Distillation from the whole distributions of aligned models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmalign.objectives.checks import not_negative, positive
from mmalign.objectives.distributions import align_distil, forward_kl, history_effect, teacher_advantage
from mmalign.objectives.ratios import log_prob, preference_metrics
from mmalign.objectives.terms import reduce_tokens
from mmalign.objectives.types import LossInputs, LossOutput, Need, TokenTerm


@dataclass(frozen=True, kw_only=True)
class AlignDistil:
    """Reverse KL to a teacher that is a DPO model moved on from its opposite, more where the two disagree.

    The sources are "dpo" and "reverse_dpo", the latter trained on swapped pairs.

    Args:
        beta: Scale of the loss.
        spread: How far the teacher moves per unit of |p_dpo - p_reverse|_1 (which is twice the total variation).
    """

    name: ClassVar[str] = "align_distil"
    formula: ClassVar[str] = "mean_t (beta / w_t) KL(policy || softmax(z_dpo + w_t (z_dpo - z_reverse)))"
    source: ClassVar[str] = "Zhang et al. 2025, arXiv 2503.02832"

    beta: float = 0.1
    spread: float = 10.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(spread=self.spread)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "logits:policy", "logits:dpo", "logits:reverse_dpo"))

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """The weighted KL at every chosen token."""
        term = TokenTerm(lambda z, y: align_distil(z, y, self.beta, self.spread), ("dpo", "reverse_dpo"))
        return {"chosen": term}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        side = inputs.chosen
        loss = reduce_tokens(side.term("loss"), side.mask, mean=True)
        metrics = {
            "teacher_distance": reduce_tokens(side.term("weight").detach(), side.mask, mean=True),
            "chosen_logps": log_prob(side).detach(),
        }
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class DCKD:
    """Fine-tuning on the chosen text, with forward KL to an aligned teacher on both texts. Its source is "teacher".

    Args:
        chosen_weight: Weight of the KL on the chosen text.
        rejected_weight: Weight of the KL on the rejected text.
    """

    name: ClassVar[str] = "dckd"
    formula: ClassVar[str] = "NLL(y_w) + c_w KL(teacher || policy on y_w) + c_l KL(teacher || policy on y_l)"
    source: ClassVar[str] = "Gao et al. 2025, arXiv 2502.17927"

    chosen_weight: float = 1.0
    rejected_weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative(chosen_weight=self.chosen_weight, rejected_weight=self.rejected_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "rejected", "logits:policy", "logits:teacher"))

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """KL(teacher || policy) at every token."""
        return dict.fromkeys(("chosen", "rejected"), TokenTerm(forward_kl, ("teacher",)))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        sides = inputs.chosen, inputs.rejected
        kls = [reduce_tokens(side.term("kl"), side.mask) for side in sides]
        logps = log_prob(inputs.chosen)
        pooled = {"chosen": self.chosen_weight * kls[0] - logps, "rejected": self.rejected_weight * kls[1]}
        means = [log_prob(side, mean=True) for side in sides]
        metrics = preference_metrics(inputs, means[0], means[1], 1.0)
        metrics |= {
            f"{name}_kl": reduce_tokens(side.term("kl").detach(), side.mask, mean=True)
            for name, side in zip(("chosen", "rejected"), sides, strict=True)
        }
        metrics["nll"] = -means[0].detach()
        return LossOutput(loss=torch.zeros_like(logps), pooled=pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class ADPA:
    """Fine-tuning on the chosen text, and an exact policy gradient over every token of the policy's own answer.

    That answer is the side "sample"; the advantage of a token is how much likelier preference training made it for the
    teacher: sources "teacher" and "teacher_reference".

    Args:
        gamma: Weight of the advantage.
        clip: Advantages are held within [-clip, clip]; the term is linear in the policy, so nothing else bounds it.
    """

    name: ClassVar[str] = "adpa"
    formula: ClassVar[str] = "NLL(y_w) - gamma mean_t sum_v policy(v) log(teacher(v) / teacher_reference(v))"
    source: ClassVar[str] = "Gao et al. 2025, arXiv 2502.17927"

    gamma: float = 1.0
    clip: float = 10.0

    def __post_init__(self) -> None:
        not_negative(gamma=self.gamma)
        positive(clip=self.clip)

    @property
    def needs(self) -> frozenset[Need]:
        logits = ("logits:policy", "logits:teacher", "logits:teacher_reference")
        return frozenset(("chosen", "side:sample", *logits))

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """The expected advantage at every token of the sample."""
        term = TokenTerm(lambda z, y: teacher_advantage(z, y, self.clip), ("teacher", "teacher_reference"))
        return {"sample": term}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        sample, logps = inputs.side("sample"), log_prob(inputs.chosen)
        pooled = {"chosen": -logps, "sample": -self.gamma * reduce_tokens(sample.term("advantage"), sample.mask)}
        metrics = {
            "chosen_logps": logps.detach(),
            "nll": -log_prob(inputs.chosen, mean=True).detach(),
            "advantage": reduce_tokens(sample.term("advantage").detach(), sample.mask, mean=True),
        }
        return LossOutput(loss=torch.zeros_like(logps), pooled=pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class NextQuill:
    """Fine-tuning on tokens that the user's history makes likelier, and on the effect of the history alone.

    The source "no_history" is the policy without the history in the prompt. Where both agree everywhere there is no
    history, and the second term is left out.

    Args:
        alpha: Weight of the history's effect.
        threshold: A token counts fully when the history raises its probability by more than this.
        strong: Weight of such a token.
        weak: Weight of the others.
        detach_no_history: Whether the policy without history learns nothing; the released code lets it learn.
    """

    name: ClassVar[str] = "next_quill"
    formula: ClassVar[str] = "sum_t w_t CE(z1_t, y_t) + alpha mean_t CE(z1_t - z0_t, y_t), w of a step sum to 1"
    source: ClassVar[str] = "NextQuill, 2025"

    alpha: float = 0.1
    threshold: float = 0.05
    strong: float = 0.9
    weak: float = 0.1
    detach_no_history: bool = False

    def __post_init__(self) -> None:
        not_negative(alpha=self.alpha)
        positive(strong=self.strong, weak=self.weak)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "logits:policy", "logits:no_history", "whole_step"))

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """Likelihood with the history, of its effect, and how much it helps, at every token."""
        term = TokenTerm(lambda z, y: history_effect(z, y, detach=self.detach_no_history), ("no_history",))
        return {"chosen": term}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        side = inputs.chosen
        helped = side.term("gain").detach() > self.threshold
        weight = torch.where(helped, self.strong, self.weak).to(side.token_logps).masked_fill(~side.mask, 0.0)
        has_history = (side.term("gain").detach().masked_fill(~side.mask, 0.0) != 0).any(-1)
        # The trainer averages over pairs; the weights of all of them sum to 1.
        loss = reduce_tokens(side.term("nll"), side.mask, weight / weight.sum() * len(weight))
        effect = torch.where(has_history, reduce_tokens(side.term("difference_nll"), side.mask), 0.0)
        tokens = (side.mask & has_history.unsqueeze(-1)).sum().clamp(min=1)
        loss = loss + self.alpha * effect / tokens * len(weight)
        metrics = {
            "chosen_logps": log_prob(side).detach(),
            "nll": reduce_tokens(side.term("nll").detach(), side.mask, mean=True),
            "history_gain": reduce_tokens(side.term("gain").detach(), side.mask, mean=True),
            "helped": reduce_tokens(helped.to(loss.dtype), side.mask, mean=True),
        }
        return LossOutput(loss=loss, metrics=metrics)
