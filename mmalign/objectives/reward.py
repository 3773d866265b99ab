"""Reward models: losses on the scores that a head gives to the two texts of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from mmalign.objectives.checks import not_negative, one_of, positive, rate, require
from mmalign.objectives.shaping import min_norm_weights, small_loss
from mmalign.objectives.terms import masked_square, soft_pair, softmax_ce
from mmalign.objectives.types import LossInputs, LossOutput, Need

SCORED: frozenset[Need] = frozenset(("chosen", "rejected", "head:scalar"))


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """The chosen text's score above the rejected one's."""

    name: ClassVar[str] = "bradley_terry"
    formula: ClassVar[str] = "-s(r_w - r_l)"
    source: ClassVar[str] = "Bradley and Terry 1952"
    scores_only: ClassVar[bool] = True
    more_needs: ClassVar[frozenset[Need]] = SCORED

    @property
    def needs(self) -> frozenset[Need]:
        return self.more_needs

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        loss = soft_pair(inputs.chosen.scores - inputs.rejected.scores, inputs.p)
        return LossOutput(loss=loss, metrics=score_metrics(inputs))


@dataclass(frozen=True, kw_only=True)
class Eurus(BradleyTerry):
    """Bradley-Terry, with right answers' scores above 0 and wrong ones' below.

    The pairs' value "absolute" is 1 where the answers are right and wrong, and 0 where one is merely preferred.
    """

    name: ClassVar[str] = "eurus"
    formula: ClassVar[str] = "-s(r_w - r_l) - s(r_w) - s(-r_l)"
    source: ClassVar[str] = "UltraInteract, Yuan et al. 2024, arXiv 2404.02078"
    more_needs: ClassVar[frozenset[Need]] = SCORED | {"value:absolute"}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        good, bad = inputs.chosen.scores, inputs.rejected.scores
        absolute = soft_pair(good, inputs.p) + soft_pair(bad, 1 - inputs.p)
        loss = soft_pair(good - bad, inputs.p) + inputs.value("absolute") * absolute
        return LossOutput(loss=loss, metrics=score_metrics(inputs))


@dataclass(frozen=True, kw_only=True)
class StrengthRM:
    """Bradley-Terry by the strength of a pair, its value "strength": the mean margin under several reward models.

    Args:
        mode: smoothing softens every label, flip swaps those of negative strength, margin asks for a margin of the
            strength.
        label_smoothing: Assumed share of flipped labels, in smoothing.
        contrast: Weight of telling a pair's difference of states from those of the others, in another dropout view:
            sides "chosen_view" and "rejected_view".
        temperature: That of the contrast.
    """

    name: ClassVar[str] = "strength_rm"
    formula: ClassVar[str] = "softCE(d, 1 - eps) | softCE(d, strength >= 0) | -s(d - strength); + c InfoNCE(h_w - h_l)"
    source: ClassVar[str] = "Secrets of RLHF II, Wang et al. 2024, arXiv 2401.06080"
    scores_only: ClassVar[bool] = True

    mode: Literal["smoothing", "flip", "margin"] = "margin"
    label_smoothing: float = 0.1
    contrast: float = 0.0
    temperature: float = 0.05

    def __post_init__(self) -> None:
        one_of(("smoothing", "flip", "margin"), mode=self.mode)
        rate(label_smoothing=self.label_smoothing)
        not_negative(contrast=self.contrast)
        positive(temperature=self.temperature)

    @property
    def needs(self) -> frozenset[Need]:
        needs = SCORED if self.mode == "smoothing" else SCORED | {"value:strength"}
        views = frozenset(("side:chosen_view", "side:rejected_view", "states", "whole_step"))
        return needs | views if self.contrast else needs

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        margin = inputs.chosen.scores - inputs.rejected.scores
        p = inputs.p.detach()
        if self.mode == "smoothing":
            loss = soft_pair(margin, p * (1 - self.label_smoothing) + (1 - p) * self.label_smoothing)
        elif self.mode == "flip":
            loss = soft_pair(margin, torch.where(inputs.value("strength") < 0, 1 - p, p))
        else:
            strength = inputs.value("strength").to(margin)
            loss = p * soft_pair(margin - strength) + (1 - p) * soft_pair(-margin - strength)
        metrics = score_metrics(inputs)
        if self.contrast:
            first = _exact(inputs.chosen.states) - _exact(inputs.rejected.states)
            second = _exact(inputs.side("chosen_view").states) - _exact(inputs.side("rejected_view").states)
            told = contrast(first, second, self.temperature)
            loss = loss + self.contrast * told
            metrics["contrast"] = told.detach()
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class CRM(BradleyTerry):
    """Bradley-Terry on the pairs that a second reward model, trained beside this one, finds easiest: a peer's review.

    The pairs' value "peer_margin" is r_w - r_l under the peer. In the paper two models are trained at once and review
    each other at every step; here the peer is a run of its own, with another seed, whose scores
    (`mmalign.train.reward.scoring.score_rows`) go into the pairs, and two runs can take turns.

    Args:
        noise: Assumed share of wrong labels: so many pairs are left out in the end.
        ramp: Share of the training over which that share grows from none.
    """

    name: ClassVar[str] = "crm"
    formula: ClassVar[str] = "-s(r_w - r_l), mean over the share 1 - noise min(t / T, 1) of least loss for the peer"
    source: ClassVar[str] = "Collaborative reward modelling, 2025"
    more_needs: ClassVar[frozenset[Need]] = SCORED | {"value:peer_margin", "progress", "whole_step"}

    noise: float = 0.3
    ramp: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.noise < 1, "noise", self.noise, "at least 0 and below 1")
        require(0 < self.ramp <= 1, "ramp", self.ramp, "more than 0 and at most 1")

    def keep(self, progress: float) -> float:
        """The share of pairs that is trained on."""
        return 1 - self.noise * min(progress / self.ramp, 1.0)

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        loss = soft_pair(inputs.chosen.scores - inputs.rejected.scores, inputs.p)
        easy = small_loss(soft_pair(inputs.value("peer_margin"), inputs.p), self.keep(inputs.progress))
        kept = easy.to(loss.dtype)
        # The trainer averages over all pairs; the mean is over those that are kept.
        loss = loss * kept * len(kept) / kept.sum()
        return LossOutput(loss=loss, metrics=score_metrics(inputs) | {"kept": kept})


@dataclass(frozen=True, kw_only=True)
class MORE(BradleyTerry):
    """Bradley-Terry over several sources of labels, weighed so that the head's gradients conflict least.

    The pairs' value "source" is the index of theirs. Gradients are those of a linear head without bias, which follow
    from the states; a source that a step lacks keeps its own, with weight 0 in the loss.

    Args:
        sources: How many there are.
        rate: How much of a source's gradient is this step's.
    """

    name: ClassVar[str] = "more"
    formula: ClassVar[str] = "K sum_k lambda_k mean over source k of -s(r_w - r_l), lambda = argmin |sum lambda_k g_k|"
    source: ClassVar[str] = "On diversified preferences, Zeng et al. 2023, arXiv 2312.07401"
    more_needs: ClassVar[frozenset[Need]] = SCORED | {"states", "value:source", "memory", "whole_step"}

    sources: int = 2
    rate: float = 0.99

    def __post_init__(self) -> None:
        require(self.sources >= 2, "sources", self.sources, "2 or more")
        require(0 < self.rate <= 1, "rate", self.rate, "more than 0 and at most 1")

    def start_memory(self) -> dict[str, Tensor]:
        return {"gradients": torch.zeros(self.sources, 0)}

    def remember(self, memory: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows, source = seen["gradient"], seen["source"]
        before = memory["gradients"].to(rows)
        if not before.numel():
            before = rows.new_zeros(self.sources, rows.shape[-1])
        count = torch.bincount(source, minlength=self.sources).unsqueeze(-1)
        mean = before.new_zeros(before.shape).index_add(0, source, rows) / count.clamp(min=1)
        known = before.norm(dim=-1, keepdim=True) > 0
        moved = torch.where(known, self.rate * mean + (1 - self.rate) * before, mean)
        return {"gradients": torch.where(count > 0, normalize(moved, dim=-1), before)}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        margin = inputs.chosen.scores - inputs.rejected.scores
        source = inputs.value("source").long()
        slope = (margin.sigmoid() - inputs.p).detach()
        rows = slope.unsqueeze(-1) * (_exact(inputs.chosen.states) - _exact(inputs.rejected.states)).detach()
        seen = {"gradient": rows, "source": source}
        known = self.remember({"gradients": inputs.recalled("gradients")}, seen)
        weights = _known_weights(known["gradients"]).to(margin)
        loss = self.sources * weights[source] * soft_pair(margin, inputs.p)
        return LossOutput(loss=loss, metrics=score_metrics(inputs) | {"source_weight": weights[source]}, seen=seen)


@dataclass(frozen=True, kw_only=True)
class PAL(BradleyTerry):
    """Bradley-Terry, or a hinge, on distances to the user's own point; the pairs' value "user" is its index.

    Args:
        link: hinge asks for a difference of distances of 1 (the released form), logistic for its sign.
        prototypes: How many points a user's own is a mixture of.
        dimension: Numbers of a point.
        squared: Square the distances, as the paper does and the released code does not.
        bound: Prototypes beyond this distance from the origin are fined.
    """

    name: ClassVar[str] = "pal"
    formula: ClassVar[str] = "relu(1 - m) or -s(m), m = |f(y_l) - u| - |f(y_w) - u|"
    source: ClassVar[str] = "Chen et al. 2024, arXiv 2406.08469"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("chosen", "rejected", "head:ideal_point", "value:user"))

    link: Literal["logistic", "hinge"] = "hinge"
    prototypes: int = 2
    dimension: int = 512
    squared: bool = False
    bound: float = 4.0

    def __post_init__(self) -> None:
        one_of(("logistic", "hinge"), link=self.link)
        require(self.prototypes >= 1, "prototypes", self.prototypes, "1 or more")
        require(self.dimension >= 1, "dimension", self.dimension, "1 or more")
        positive(bound=self.bound)

    @property
    def head(self) -> Mapping[str, float]:
        names = ("prototypes", "dimension", "squared", "bound")
        return {name: getattr(self, name) for name in names}

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        if self.link == "logistic":
            return super().__call__(inputs)
        margin, p = inputs.chosen.scores - inputs.rejected.scores, inputs.p.detach()
        loss = p * torch.relu(1 - margin) + (1 - p) * torch.relu(1 + margin)
        return LossOutput(loss=loss, metrics=score_metrics(inputs))


@dataclass(frozen=True, kw_only=True)
class ArmoRM(BradleyTerry):
    """Bradley-Terry on a gated mixture of attributes, of which only the gate learns.

    The first stage, before the first step, fits the attributes by ridge regression on the chosen texts' states: the
    pairs' value "attributes" has NaN where none was given. A pair of weight 0 is there for that stage only.

    Args:
        verbose: Index of the attribute that is verbosity; -1 is the last.
        width: Width of the gate's hidden layers.
        temperature: The gate's logits are divided by it.
    """

    name: ClassVar[str] = "armorm"
    formula: ClassVar[str] = "-s(R_w - R_l), R = sum_k g_k(x) (r_k - lambda_k r_verbosity)"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2406.12845"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("chosen", "rejected", "head:gated", "value:attributes"))

    verbose: int = -1
    width: int = 1024
    temperature: float = 10.0

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "1 or more")
        positive(temperature=self.temperature)

    @property
    def head(self) -> Mapping[str, float]:
        names = ("verbose", "width", "temperature")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class HelpSteer:
    """Squared error of attribute scores of single answers; the pairs' value "attributes" has NaN where none was given.

    The mean is over the attributes that a row has, then over rows.
    """

    name: ClassVar[str] = "helpsteer"
    formula: ClassVar[str] = "mean over attributes of (r_a - label_a)^2"
    source: ClassVar[str] = "HelpSteer2, Wang et al. 2024, arXiv 2406.08673"
    scores_only: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen", "head:attributes", "value:attributes"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        scores = inputs.chosen.scores
        total, count = masked_square(scores, inputs.value("attributes").to(scores))
        loss = total / count.clamp(min=1)
        metrics = {"error": loss.detach().sqrt()}
        if scores.shape[-1] == 5:
            metrics["overall"] = helpsteer_score(scores.detach())
        return LossOutput(loss=loss, metrics=metrics)


def _exact(states: Tensor) -> Tensor:
    """States in float32, or in what they have that is better: their differences are small."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _known_weights(gradients: Tensor) -> Tensor:
    """Min-norm weights (K,) of the sources that have a gradient; one that has none yet would take all the weight."""
    known = gradients.norm(dim=-1) > 0
    weights = gradients.new_zeros(len(gradients))
    return weights.masked_scatter(known, min_norm_weights(gradients[known])) if known.any() else weights


def helpsteer_score(attributes: Tensor) -> Tensor:
    """One number (...) to rank by, of helpfulness, correctness, coherence, complexity and verbosity (..., 5)."""
    return attributes @ attributes.new_tensor((0.65, 0.8, 0.45, 0.0, 0.0))


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE (B,) of each row of `first` (B, H) with its own among those of `second`, by cosine; 0 for one row."""
    return softmax_ce(cosine_similarity(first.unsqueeze(1), second.unsqueeze(0), dim=-1) / temperature)


@torch.no_grad()
def score_metrics(inputs: LossInputs) -> dict[str, Tensor]:
    """What a reward model is watched by."""
    good, bad = inputs.chosen.scores.detach(), inputs.rejected.scores.detach()
    return {"chosen_score": good, "rejected_score": bad, "margin": good - bad, "accuracy": (good > bad).to(good.dtype)}
