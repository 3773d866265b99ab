"""Losses on two numbers per pair, the log-ratios of its texts, that differ from DPO in their link only.

These are TRL's `loss_type`s; each class names its paper. A pair's own p mixes the loss with that of the swapped pair.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.objectives.checks import one_of, positive, rate, require
from mmalign.objectives.ratios import log_prob, log_ratio, preference_metrics
from mmalign.objectives.terms import reduce_tokens, soft_pair, square
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need

#: Exponents are held below this, so that float32 can hold what comes of them.
MOST = 80.0


@dataclass(frozen=True, kw_only=True)
class PairLoss(ABC):
    """link(a, c) of a pair's two scores: by default a, c = summed log-ratios of chosen and rejected to the reference.

    Args:
        beta: How strongly the policy is held to the reference.
    """

    name: ClassVar[str]
    mean: ClassVar[bool] = False
    reference: ClassVar[bool] = True
    more_needs: ClassVar[frozenset[Need]] = frozenset()

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        base = frozenset(("chosen", "rejected")) | self.more_needs
        return base | {"reference"} if self.reference else base

    def score(self, side: Completions) -> Tensor:
        """The score (B,) of one completion."""
        return (log_ratio if self.reference else log_prob)(side, mean=self.mean)

    @abstractmethod
    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss (B,) of pairs with these scores (B,)."""

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = self.score(inputs.chosen), self.score(inputs.rejected)
        p = inputs.p.detach()
        loss = p * self.link(chosen, rejected) + (1 - p) * self.link(rejected, chosen)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class Hinge(PairLoss):
    """Support-vector margin of 1 between the rewards."""

    name: ClassVar[str] = "hinge"
    formula: ClassVar[str] = "relu(1 - beta D)"
    source: ClassVar[str] = "SLiC-HF, Zhao et al. 2023, arXiv 2305.10425"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.relu(1 - self.beta * (chosen - rejected))


@dataclass(frozen=True, kw_only=True)
class IPO(PairLoss):
    """Regression of the difference of token means to 1 / (2 beta); the mean is what the authors confirmed to TRL."""

    name: ClassVar[str] = "ipo"
    formula: ClassVar[str] = "(lr_w / n_w - lr_l / n_l - 1 / (2 beta))^2"
    source: ClassVar[str] = "Azar et al. 2023, arXiv 2310.12036, eq. 17"
    mean: ClassVar[bool] = True

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return square(chosen - rejected, 1 / (2 * self.beta))


@dataclass(frozen=True, kw_only=True)
class EXO(PairLoss):
    """Reverse KL between the policy's preference and the label's.

    Args:
        beta: How strongly the policy is held to the reference.
        label_smoothing: Share eps of wrong labels, more than 0: without it the KL is infinite.
    """

    name: ClassVar[str] = "exo_pair"
    formula: ClassVar[str] = "sg(z) (s(z) - log(1 - eps)) + sg(-z) (s(-z) - log eps), z = beta D"
    source: ClassVar[str] = "Ji et al. 2024, arXiv 2402.00856, eq. 16"

    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(label_smoothing=self.label_smoothing)
        positive(label_smoothing=self.label_smoothing)

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        z, eps = self.beta * (chosen - rejected), self.label_smoothing
        right = z.sigmoid() * (logsigmoid(z) - math.log1p(-eps))
        return right + (-z).sigmoid() * (logsigmoid(-z) - math.log(eps))


@dataclass(frozen=True, kw_only=True)
class NCA(PairLoss):
    """Noise contrast of each text with the reference, which keeps the chosen text's likelihood up."""

    name: ClassVar[str] = "nca_pair"
    formula: ClassVar[str] = "-s(beta lr_w) - s(-beta lr_w) / 2 - s(-beta lr_l) / 2"
    source: ClassVar[str] = "Chen et al. 2024, arXiv 2402.05369"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        good, bad = self.beta * chosen, self.beta * rejected
        return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)


@dataclass(frozen=True, kw_only=True)
class BCO(PairLoss):
    """A binary classifier of good and bad; as in TRL 1.16 without a running mean."""

    name: ClassVar[str] = "bco_pair"
    formula: ClassVar[str] = "-s(beta lr_w) - s(-beta lr_l)"
    source: ClassVar[str] = "Jung et al. 2024, arXiv 2404.04656"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return soft_pair(chosen, 1.0, self.beta) + soft_pair(rejected, 0.0, self.beta)


@dataclass(frozen=True, kw_only=True)
class HardSPPO(PairLoss):
    """SPPO with win rates 1 and 0, as in TRL: without the paper's factor 1/2, which "sppo" has."""

    name: ClassVar[str] = "sppo_hard"
    formula: ClassVar[str] = "(lr_w - 1 / (2 beta))^2 + (lr_l + 1 / (2 beta))^2"
    source: ClassVar[str] = "Wu et al. 2024, arXiv 2405.00675"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return square(chosen, 0.5 / self.beta) + square(rejected, -0.5 / self.beta)


@dataclass(frozen=True, kw_only=True)
class APOZero(PairLoss):
    """Raises the chosen text, lowers the rejected: for chosen texts better than the model's own."""

    name: ClassVar[str] = "apo_zero"
    formula: ClassVar[str] = "1 - sg(beta lr_w) + sg(beta lr_l)"
    source: ClassVar[str] = "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()


@dataclass(frozen=True, kw_only=True)
class APODown(PairLoss):
    """Lowers both texts, the rejected one more: for chosen texts worse than the model's own."""

    name: ClassVar[str] = "apo_down"
    formula: ClassVar[str] = "sg(beta lr_w) + 1 - sg(beta D)"
    source: ClassVar[str] = "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8"

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (self.beta * chosen).sigmoid() + (self.beta * (rejected - chosen)).sigmoid()


@dataclass(frozen=True, kw_only=True)
class DiscoPOP(PairLoss):
    """A blend of logistic and exponential loss that a language model found.

    It is not convex: at D = 0, where every policy starts, its slope is such that margins fall first.

    Args:
        beta: How strongly the policy is held to the reference.
        tau: Width of the blend.
    """

    name: ClassVar[str] = "discopop"
    formula: ClassVar[str] = "-(1 - m) s(z) + m exp(-z), m = sg(z / tau), z = beta D"
    source: ClassVar[str] = "Lu et al. 2024, arXiv 2406.08414, eq. 5"

    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.tau <= 1, "tau", self.tau, "more than 0 and at most 1")

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        z = self.beta * (chosen - rejected)
        # As one exponent: apart, m = 0 would meet exp(-z) = inf.
        exponential = (logsigmoid(z / self.tau) - z).exp()
        return exponential - (-z / self.tau).sigmoid() * logsigmoid(z)


@dataclass(frozen=True, kw_only=True)
class NormalisedDPO(PairLoss):
    """DPO on token means, so that length does not count."""

    name: ClassVar[str] = "sigmoid_norm"
    formula: ClassVar[str] = "-s(beta (lr_w / n_w - lr_l / n_l))"
    source: ClassVar[str] = "Lambert et al. 2024, arXiv 2411.15124"
    mean: ClassVar[bool] = True

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return soft_pair(chosen - rejected, scale=self.beta)


Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class FDPO(PairLoss):
    """DPO under another divergence from the reference than the reverse KL.

    Args:
        beta: How strongly the policy is held to the reference.
        divergence: reverse_kl (which is DPO), forward_kl, js or alpha.
        alpha: Order of the alpha-divergence; 1 is reverse_kl.
    """

    name: ClassVar[str] = "f_dpo"
    formula: ClassVar[str] = (
        "-s(beta (f'(lr_w) - f'(lr_l))): 1 - exp(-lr), log 2 + s(lr), (exp((a - 1) lr) - 1) / (a - 1)"
    )
    source: ClassVar[str] = "Wang et al. 2023, arXiv 2309.16240"

    divergence: Divergence = "js"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("reverse_kl", "forward_kl", "js", "alpha"), divergence=self.divergence)

    def score(self, side: Completions) -> Tensor:
        ratio = log_ratio(side)
        order = self.alpha - 1
        if self.divergence == "forward_kl":
            return 1 - (-ratio).clamp(max=MOST).exp()
        if self.divergence == "js":
            return math.log(2) + logsigmoid(ratio)
        if self.divergence == "alpha" and abs(order) > 1e-6:
            return ((order * ratio).clamp(max=MOST).exp() - 1) / order
        return ratio

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return soft_pair(chosen - rejected, scale=self.beta)


@dataclass(frozen=True, kw_only=True)
class LengthDPO(PairLoss):
    """DPO in which tokens past the shorter text's length count less, against length for its own sake.

    Args:
        beta: How strongly the policy is held to the reference.
        tail_weight: Weight of the tokens past the shorter length, in [0, 1].
    """

    name: ClassVar[str] = "ld_dpo"
    formula: ClassVar[str] = "-s(beta D), tokens past min(n_w, n_l) weigh tail_weight"
    source: ClassVar[str] = "Liu et al. 2024, arXiv 2409.06411"

    tail_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.tail_weight <= 1, "tail_weight", self.tail_weight, "in [0, 1]")

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return soft_pair(chosen - rejected, scale=self.beta)

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        shared = torch.minimum(inputs.chosen.mask.sum(-1), inputs.rejected.mask.sum(-1))

        def score(side: Completions) -> Tensor:
            tail = side.mask.cumsum(-1) > shared.unsqueeze(-1)
            weight = torch.ones_like(side.token_logps).masked_fill(tail, self.tail_weight)
            return log_ratio(side, weight)

        chosen, rejected = score(inputs.chosen), score(inputs.rejected)
        loss = soft_pair(chosen - rejected, inputs.p, self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class AOT(PairLoss):
    """Optimal transport: the sorted margins of a batch against the sorted margins of the reference.

    A pair's loss is that of its own margin beside the reference's margin of the same rank, whosever that is; so is its
    weight.

    Args:
        beta: How strongly the policy is held to the reference.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
    """

    name: ClassVar[str] = "aot"
    formula: ClassVar[str] = "softCE(beta (sort(L_w - L_l) - sort(ref)), 1 - label_smoothing)"
    source: ClassVar[str] = "Melnyk et al. 2024, arXiv 2406.05882"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("whole_step",))

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rate(label_smoothing=self.label_smoothing)

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss (B,) of numbers of the same rank that should lie apart."""
        return soft_pair(chosen - rejected, 1 - self.label_smoothing, self.beta)

    def compared(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """What should be larger, pair by pair, and what smaller (B,)."""
        sides = inputs.chosen, inputs.rejected
        policy, reference = (
            [reduce_tokens(values, side.mask) for side, values in zip(sides, rows, strict=True)]
            for rows in ([side.token_logps for side in sides], [side.reference for side in sides])
        )
        return policy[0] - policy[1], reference[0] - reference[1]

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = self.score(inputs.chosen), self.score(inputs.rejected)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        larger, smaller = self.compared(inputs)
        ranks = larger.detach().argsort(stable=True).argsort()
        return LossOutput(loss=self.link(larger, smaller.sort().values[ranks]), metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class UnpairedAOT(AOT):
    """Optimal transport between the log-ratios of all chosen and of all rejected texts of a batch."""

    name: ClassVar[str] = "aot_unpaired"
    formula: ClassVar[str] = "softCE(beta (sort(lr_w) - sort(lr_l)), 1 - label_smoothing)"

    def compared(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        return self.score(inputs.chosen), self.score(inputs.rejected)


@dataclass(frozen=True, kw_only=True)
class KTO(PairLoss):
    """Gains and losses against a point of reference, an estimate of KL(policy || reference) over the batch.

    The side "mismatched" is an answer to another prompt; the mean of its log-ratio, at least 0, is the estimate.

    Args:
        beta: How strongly the policy is held to the reference.
        desirable_weight: Weight of the chosen texts.
        undesirable_weight: Weight of the rejected texts.
    """

    name: ClassVar[str] = "kto"
    formula: ClassVar[str] = "(1 - sg(beta (lr_w - kl)) + 1 - sg(beta (kl - lr_l))) / 2"
    source: ClassVar[str] = "Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("side:mismatched", "reference:mismatched", "whole_step"))

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight)

    def link(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss (B,) of scores from which the KL has been taken."""
        good = self.desirable_weight * (-self.beta * chosen).sigmoid()
        return (good + self.undesirable_weight * (self.beta * rejected).sigmoid()) / 2

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = self.score(inputs.chosen), self.score(inputs.rejected)
        divergence = self.score(inputs.side("mismatched")).detach().mean().clamp(min=0)
        p = inputs.p.detach()
        above, below = chosen - divergence, rejected - divergence
        loss = p * self.link(above, below) + (1 - p) * self.link(below, above)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        return LossOutput(loss=loss, metrics={**metrics, "kl": divergence.expand_as(loss)})
