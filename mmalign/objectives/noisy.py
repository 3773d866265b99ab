"""DPO with labels that may be wrong, where how wrong is read off the policy itself or comes from a judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.objectives.checks import positive, require
from mmalign.objectives.distributions import extrapolated
from mmalign.objectives.labels import goal_label, lcpo_posterior, lcpo_update, selfie_labels, window_quantile
from mmalign.objectives.ratios import log_ratio, preference_metrics
from mmalign.objectives.shaping import ranking_difficulty
from mmalign.objectives.terms import reduce_tokens, soft_pair
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need, TokenTerm

PAIRS: frozenset[Need] = frozenset(("chosen", "rejected", "reference"))


@dataclass(frozen=True, kw_only=True)
class LCPO:
    """DPO whose label is weighed anew at every step by what policy and annotator say of it (also called RE-PO).

    The weight carries no gradient; with one it would sharpen itself.

    Args:
        beta: How strongly the policy is held to the reference.
        reliability: How often an annotator is taken to be right before the first step.
        rate: How far a step moves it.
        annotators: How many there are; with more than 1 the pairs' value "annotator" is the index of theirs.
    """

    name: ClassVar[str] = "lcpo"
    formula: ClassVar[str] = "softCE(beta D, w), w = sg(beta D + logit eta) without gradient"
    source: ClassVar[str] = "LCPO, also RE-PO: robust preference optimisation by expectation-maximisation, 2025"

    beta: float = 0.1
    reliability: float = 0.9
    rate: float = 0.1
    annotators: int = 1

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        require(0 < self.reliability < 1, "reliability", self.reliability, "more than 0 and below 1")
        require(0 <= self.rate <= 1, "rate", self.rate, "in [0, 1]")
        require(self.annotators >= 1, "annotators", self.annotators, "1 or more")

    @property
    def needs(self) -> frozenset[Need]:
        base = PAIRS | {"memory"}
        return base | {"value:annotator"} if self.annotators > 1 else base

    def start_memory(self) -> dict[str, Tensor]:
        return {"reliability": torch.full((self.annotators,), self.reliability)}

    def remember(self, memory: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"reliability": lcpo_update(memory["reliability"], seen["posterior"], seen["annotator"], self.rate)}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        z = self.beta * (chosen - rejected)
        annotator = inputs.value("annotator").long() if self.annotators > 1 else torch.zeros_like(z, dtype=torch.long)
        eta = inputs.recalled("reliability").to(z)[annotator]
        # The label says "chosen" with probability p, else it says "rejected".
        p, said, opposed = inputs.p.detach(), lcpo_posterior(z, eta), lcpo_posterior(z, 1 - eta)
        loss = soft_pair(z, p * said + (1 - p) * opposed)
        posterior = p * said + (1 - p) * (1 - opposed)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta) | {"posterior": posterior, "reliability": eta}
        return LossOutput(loss=loss, metrics=metrics, seen={"posterior": posterior, "annotator": annotator})


@dataclass(frozen=True, kw_only=True)
class Selfie:
    """DPO that trusts a label less when its margin is among the lowest of late ones.

    Args:
        beta: How strongly the policy is held to the reference.
        noise: How wrong such a label is taken to be.
        quantile: Share of margins that count as low.
        window: Steps over which margins are kept; until as many margins are there the threshold is 0.
        warmup: Share of the training in which every label is trusted.
        extrapolation: How far the margin's model is moved on from the reference past the policy; more than 0 needs
            whole distributions of both.
    """

    name: ClassVar[str] = "selfie"
    formula: ClassVar[str] = "softCE(beta D, 1 if the margin is above the window's quantile else 1 - noise)"
    source: ClassVar[str] = "Spread preference annotation, Kim et al. 2024, arXiv 2406.04412"

    beta: float = 0.1
    noise: float = 0.1
    quantile: float = 0.1
    window: int = 50
    warmup: float = 0.2
    extrapolation: float = 0.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        for key in ("noise", "quantile", "warmup"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.window >= 2, "window", self.window, "2 or more")
        require(self.extrapolation >= 0, "extrapolation", self.extrapolation, "0 or more")

    @property
    def needs(self) -> frozenset[Need]:
        base = PAIRS | {"memory", "progress"}
        return base | {"logits:policy", "logits:reference"} if self.extrapolation else base

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """The log-probs of the extrapolated model, where there is one."""
        term = TokenTerm(lambda logits, labels: extrapolated(logits, labels, self.extrapolation), ("reference",))
        return {"chosen": term, "rejected": term} if self.extrapolation else {}

    def start_memory(self) -> dict[str, Tensor]:
        return {"margins": torch.zeros(0), "ages": torch.zeros(0, dtype=torch.long)}

    def remember(self, memory: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new, ages = seen["margin"].to(memory["margins"]), memory["ages"]
        margins = torch.cat((memory["margins"], new))
        ages = torch.cat((ages + 1, ages.new_zeros(len(new))))  # in steps, which may differ in size
        return {"margins": margins[ages < self.window], "ages": ages[ages < self.window]}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        margin = self.beta * (self._seen(inputs.chosen) - self._seen(inputs.rejected))
        threshold = window_quantile(inputs.recalled("margins").to(margin), self.quantile, self.window)
        trusted = selfie_labels(margin, threshold, self.noise if inputs.progress >= self.warmup else 0.0)
        p = inputs.p.detach()
        loss = soft_pair(chosen - rejected, p * trusted + (1 - p) * (1 - trusted), self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta) | {"trusted": (trusted == 1).to(loss.dtype)}
        return LossOutput(loss=loss, metrics=metrics, seen={"margin": margin})

    def _seen(self, side: Completions) -> Tensor:
        """The log-ratio (B,) that labels are judged by."""
        if not self.extrapolation:
            return log_ratio(side).detach()
        return reduce_tokens((side.term("extrapolated") - side.reference).detach(), side.mask)


@dataclass(frozen=True, kw_only=True)
class OSP:
    """DPO against the judge's own probability of the label, which the pairs carry as p: strength counts, not sign only.

    Args:
        beta: How strongly the policy is held to the reference.
        clip: p is held this far from 0 and 1.
    """

    name: ClassVar[str] = "osp"
    formula: ClassVar[str] = "softCE(beta D, p), p judged in both orders"
    source: ClassVar[str] = "Online self-preferring language models, 2024"

    beta: float = 0.1
    clip: float = 0.01

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        require(0 <= self.clip < 0.5, "clip", self.clip, "at least 0 and below 0.5")

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        loss = soft_pair(chosen - rejected, inputs.p.clamp(self.clip, 1 - self.clip), self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta))


@dataclass(frozen=True, kw_only=True)
class DNO:
    """DPO against the difference of the two answers' win rates over the policy's own answers.

    Args:
        beta: How strongly the policy is held to the reference.
        temperature: Win rates are divided by it; below 1 it strengthens labels that would all be near 1/2.
    """

    name: ClassVar[str] = "dno"
    formula: ClassVar[str] = "softCE(beta D, sg((r_w - r_l) / temperature)), r = win rates"
    source: ClassVar[str] = "Direct Nash optimisation, Rosset et al. 2024, arXiv 2404.03715"

    beta: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(beta=self.beta, temperature=self.temperature)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS | {"value:chosen_win_rate", "value:rejected_win_rate"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        q = goal_label(inputs.value("chosen_win_rate"), inputs.value("rejected_win_rate"), self.temperature)
        loss = soft_pair(chosen - rejected, q, self.beta)
        return LossOutput(loss=loss, metrics=preference_metrics(inputs, chosen, rejected, self.beta) | {"label": q})


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """DPO, with the loss at which the policy begins to rank each pair right: how much a pair has to be learnt.

    Args:
        beta: How strongly the policy is held to the reference.
    """

    name: ClassVar[str] = "ranked_dpo"
    formula: ClassVar[str] = "-s(beta D); logs D - c and -s(beta c), c = L_ref(y_l) - L_ref(y_w)"
    source: ClassVar[str] = "Preference learning algorithms do not learn preference rankings, 2024, arXiv 2405.19534"

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return PAIRS

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        chosen, rejected = log_ratio(inputs.chosen), log_ratio(inputs.rejected)
        needed = ranking_difficulty(*(reduce_tokens(s.reference, s.mask) for s in (inputs.chosen, inputs.rejected)))
        loss = soft_pair(chosen - rejected, inputs.p, self.beta)
        metrics = preference_metrics(inputs, chosen, rejected, self.beta)
        metrics |= {
            "ranking_accuracy": (chosen - rejected > needed).to(loss.dtype),
            "loss_to_rank_right": -logsigmoid(self.beta * needed),
        }
        return LossOutput(loss=loss, metrics=metrics)
