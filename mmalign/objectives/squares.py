"""Regressions of log-ratios to what a known preference says they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmalign.objectives.checks import positive, require
from mmalign.objectives.noisy import PAIRS
from mmalign.objectives.ratios import log_ratio, preference_metrics
from mmalign.objectives.terms import square
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class SPPO:
    """Each answer's log-ratio is regressed to its win rate over the answers of the policy that made it.

    The squares are of the order 1 / beta^2: watch the log-ratios, and clip gradients.

    Args:
        beta: How strongly the policy is held to the reference, 1 / eta of the paper.
    """

    name: ClassVar[str] = "sppo"
    formula: ClassVar[str] = "((lr_w - (P_w - 1/2) / beta)^2 + (lr_l - (P_l - 1/2) / beta)^2) / 2"
    source: ClassVar[str] = "Wu et al. 2024, arXiv 2405.00675"

    beta: float = 1e-3

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"value:chosen_win_rate", "value:rejected_win_rate"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        good, bad = ((inputs.value(f"{side}_win_rate") - 0.5) / self.beta for side in ("chosen", "rejected"))
        loss = 0.5 * (square(chosen, good) + square(rejected, bad))
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class IREPO:
    """The reward difference is regressed to the log-odds of the preference, which the pairs carry as p.

    Args:
        beta: How strongly the policy is held to the reference.
        annotators: How many voted on a pair, 2 or more; p is held 1 / (2 annotators) from 0 and 1, where log-odds are
            infinite (with one it would always be 1/2).
    """

    name: ClassVar[str] = "irepo"
    formula: ClassVar[str] = "(beta D - logit p)^2"
    source: ClassVar[str] = "iREPO, 2024, arXiv 2405.15230"

    beta: float = 0.1
    annotators: int = 10

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        require(self.annotators >= 2, "annotators", self.annotators, "2 or more")

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        edge = 1 / (2 * self.annotators)
        target = inputs.p.clamp(edge, 1 - edge).logit()
        loss = square(self.beta * (chosen - rejected), target)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class Sharpening:
    """The reward difference is regressed to a given one, such as that of the base model's own log-probs.

    Args:
        beta: How strongly the policy is held to the reference.
    """

    name: ClassVar[str] = "reward_regression"
    formula: ClassVar[str] = "(beta D - (r_w - r_l))^2"
    source: ClassVar[str] = "Self-improvement in language models: the sharpening mechanism, 2024, arXiv 2412.01951"

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"value:chosen_reward", "value:rejected_reward"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        target = inputs.value("chosen_reward") - inputs.value("rejected_reward")
        loss = square(self.beta * (chosen - rejected), target)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class SRPO:
    """One model answers, and improves an answer that it is shown; both are regressed to the same preference.

    The side "a_after_b" is answer a given a prompt that shows answer b and asks for a better one.

    Args:
        beta: How strongly the policy is held to the reference.
        alpha: Weight of the improvement squares; with 0 the two sides that repeat an answer are not needed.
    """

    name: ClassVar[str] = "srpo"
    formula: ClassVar[str] = (
        "(1 - alpha) (1/2 - beta/2 [lr(w|l) - lr(l|w) + D])^2"
        " + alpha/2 [(1/2 - beta (lr(w|l) - lr(l|l)))^2 + (1/2 - beta (lr(w|w) - lr(l|w)))^2]"
    )
    source: ClassVar[str] = "Self-improving robust preference optimisation, Choi et al. 2024, arXiv 2406.01660"

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1]")

    @property
    def _shown(self) -> tuple[str, ...]:
        crossed = ("chosen_after_rejected", "rejected_after_chosen")
        return (*crossed, "rejected_after_rejected", "chosen_after_chosen") if self.alpha else crossed

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS.union(*({f"side:{name}", f"reference:{name}"} for name in self._shown))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        shown = {name: log_ratio(inputs.side(name)) for name in self._shown}
        better, worse = shown["chosen_after_rejected"], shown["rejected_after_chosen"]

        def identity(difference: Tensor) -> Tensor:
            return square(0.5 - self.beta * difference, 0.0)

        generative = identity((better - worse + chosen - rejected) / 2)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta) | {"generative_loss": generative.detach()}
        if not self.alpha:
            return LossOutput(loss=generative, metrics=metrics)
        improving = identity(better - shown["rejected_after_rejected"]) + identity(shown["chosen_after_chosen"] - worse)
        loss = (1 - self.alpha) * generative + self.alpha / 2 * improving
        return LossOutput(loss=loss, metrics=metrics | {"improvement_loss": improving.detach()})
