"""DPO with one more forward: another answer, or the same answer in another context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mmalign.objectives.checks import not_negative, one_of, positive
from mmalign.objectives.free import ORPO
from mmalign.objectives.noisy import PAIRS
from mmalign.objectives.ratios import log_prob, log_ratio, preference_metrics
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class SELM:
    """DPO that moves mass away from the side "greedy", the reference's own answer, to explore.

    The second term has no lower bound: keep alpha tiny.

    Args:
        beta: How strongly the policy is held to the reference.
        alpha: Weight of the exploration.
    """

    name: ClassVar[str] = "selm"
    formula: ClassVar[str] = "-s(beta D) + alpha beta lr(y_ref)"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2405.19332"

    beta: float = 0.01
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(alpha=self.alpha)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"side:greedy", "reference:greedy"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        greedy = log_ratio(inputs.side("greedy"))
        loss = soft_pair(chosen - rejected, inputs.p, self.beta) + self.alpha * self.beta * greedy
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        return LossOutput(loss=loss, metrics={**metrics, "greedy_logps_change": greedy.detach()})


@dataclass(frozen=True, kw_only=True)
class D2O:
    """The mean of the model's own answers, the side "samples", against a harmful one; no good answer is needed.

    Args:
        beta: Scale of the own answers' mean log-ratio.
        alpha: Scale of the harmful answer's.
    """

    name: ClassVar[str] = "d2o"
    formula: ClassVar[str] = "-s(beta mean_k lr(y_k) - alpha lr_l)"
    source: ClassVar[str] = "Distributional dispreference optimisation, Duan et al. 2024, arXiv 2403.03419"

    beta: float = 0.1
    alpha: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta, alpha=self.alpha)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("rejected", "reference", "side:samples", "reference:samples"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        samples = inputs.side("samples")
        if not samples.present.any(-1).all():
            raise ValueError("d2o: a pair has no samples of its own; without them the text would only be unlearnt")
        own = reduce_tokens(log_ratio(samples), samples.present, mean=True)
        harmful = log_ratio(inputs.rejected)
        loss = soft_pair(self.beta * own - self.alpha * harmful, inputs.p)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, own, harmful, self.beta))


@dataclass(frozen=True, kw_only=True)
class MDPO:
    """DPO that also prefers the chosen text with the media as they are to the same text with damaged media.

    The side "chosen_damaged" is that text; a pair without media has none, and no such term. The anchor keeps the
    chosen text's reward up.

    Args:
        beta: How strongly the policy is held to the reference.
        anchor: What the chosen text's reward is to exceed.
        conditional_weight: Weight of the media term.
        anchor_weight: Weight of the anchor.
    """

    name: ClassVar[str] = "mdpo"
    formula: ClassVar[str] = "-s(beta D) - s(beta (lr_w - lr_w|damaged)) - s(beta lr_w - anchor)"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2406.11839"

    beta: float = 0.1
    anchor: float = 0.0
    conditional_weight: float = 1.0
    anchor_weight: float = 1.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(conditional_weight=self.conditional_weight, anchor_weight=self.anchor_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"side:chosen_damaged", "reference:chosen_damaged"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        damaged = inputs.side("chosen_damaged")
        seen = chosen - log_ratio(damaged)
        preference = soft_pair(chosen - rejected, inputs.p, self.beta)
        conditional = torch.where(damaged.present, soft_pair(seen, scale=self.beta), 0.0)
        anchored = soft_pair(chosen, scale=self.beta, offset=-self.anchor)
        loss = preference + self.conditional_weight * conditional + self.anchor_weight * anchored
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        metrics |= {"preference_loss": preference.detach(), "conditional_margin": self.beta * seen.detach()}
        return LossOutput(loss=loss, metrics={**metrics, "anchor_loss": anchored.detach()})


@dataclass(frozen=True, kw_only=True)
class Rationales:
    """DPO with the likelihood of the side "rationale": why the one text is better, told after both.

    A sum over tokens with a small weight, as the paper states; the released code wraps it in a log-sigmoid, which
    saturates. A pair without a rationale has no such term.

    Args:
        beta: How strongly the policy is held to the reference; in ORPO the weight of the odds.
        gamma: Weight of the rationale's negative log-likelihood.
        base: The loss of the pair, dpo or orpo.
    """

    name: ClassVar[str] = "rationale_dpo"
    formula: ClassVar[str] = "-s(beta D) - gamma L(rationale)"
    source: ClassVar[str] = "Just et al. 2024, arXiv 2407.14477"

    beta: float = 0.1
    gamma: float = 1e-3
    base: Literal["dpo", "orpo"] = "dpo"

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(gamma=self.gamma)
        one_of(("dpo", "orpo"), base=self.base)

    @property
    def needs(self) -> frozenset[Need]:
        pairs = PAIRS if self.base == "dpo" else ORPO().needs
        return pairs | {"side:rationale"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        told = -log_prob(inputs.side("rationale"))
        if self.base == "orpo":
            output = ORPO(beta=self.beta)(inputs)
        else:
            chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
            loss = soft_pair(chosen - rejected, inputs.p, self.beta)
            output = LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))
        metrics = {**output.metrics, "rationale_nll": told.detach()}
        return LossOutput(loss=output.loss + self.gamma * told, pooled=output.pooled, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class RationaleORPO(Rationales):
    """ORPO with the likelihood of the side "rationale"."""

    name: ClassVar[str] = "rationale_orpo"
    formula: ClassVar[str] = "ORPO - gamma L(rationale)"

    gamma: float = 1.0
    base: Literal["dpo", "orpo"] = "orpo"


@dataclass(frozen=True, kw_only=True)
class MAPL:
    """DPO, and preferences between prompts: over one answer, and over the margins of the same two answers.

    The sides "fulfilled" and "missed" are one answer under a prompt more, and one less, of whose instructions it meets;
    "chosen_favoured" and "rejected_favoured" are the pair under a prompt that only the chosen text meets. Between
    prompts the partition functions do not cancel, so for a policy the first of the two is a heuristic.

    Args:
        beta: How strongly the policy is held to the reference.
        intra_weight: Weight of the preference over prompts.
        inter_weight: Weight of the preference over margins.
    """

    name: ClassVar[str] = "mapl"
    formula: ClassVar[str] = "-s(beta D) - c1 s(beta (lr(y|x_w) - lr(y|x_l))) - c2 s(beta (D' - D))"
    source: ClassVar[str] = "Multi-level aware preference learning, 2025"

    beta: float = 0.1
    intra_weight: float = 1.0
    inter_weight: float = 1.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        not_negative(intra_weight=self.intra_weight, inter_weight=self.inter_weight)

    @property
    def needs(self) -> frozenset[Need]:
        sides: tuple[str, ...] = ("fulfilled", "missed") if self.intra_weight else ()
        sides += ("chosen_favoured", "rejected_favoured") if self.inter_weight else ()
        return PAIRS.union(*({f"side:{name}", f"reference:{name}"} for name in sides))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        loss = soft_pair(chosen - rejected, inputs.p, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta) | {"preference_loss": loss.detach()}
        if self.intra_weight:
            difference = log_ratio(inputs.side("fulfilled")) - log_ratio(inputs.side("missed"))
            loss = loss + self.intra_weight * soft_pair(difference, scale=self.beta)
            metrics["intra_margin"] = self.beta * difference.detach()
        if self.inter_weight:
            favoured = log_ratio(inputs.side("chosen_favoured")) - log_ratio(inputs.side("rejected_favoured"))
            growth = favoured - (chosen - rejected)
            loss = loss + self.inter_weight * soft_pair(growth, scale=self.beta)
            metrics["inter_margin"] = self.beta * growth.detach()
        return LossOutput(loss=loss, metrics=metrics)
