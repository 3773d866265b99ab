"""Objectives over K answers of one prompt: the side "answers" has shapes (B, K, T), the pairs' value "scores" (B, K).

An answer without tokens is none, so lists may differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmalign.objectives.checks import not_negative, positive
from mmalign.objectives.ratios import log_prob, log_ratio
from mmalign.objectives.shaping import lambda_weights
from mmalign.objectives.terms import pair_matrix, reduce_tokens, soft_pair, softmax_ce
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class LiPO:
    """All pairs of a list, weighed by how much their order matters for its discounted gain (LambdaRank).

    Args:
        beta: How strongly the policy is held to the reference.
        mean_over_pairs: Divide by the number of pairs, for lists of different length.
    """

    name: ClassVar[str] = "lipo"
    formula: ClassVar[str] = "sum over psi_i > psi_j of |G_i - G_j| |d_i - d_j| (-s(beta (lr_i - lr_j)))"
    source: ClassVar[str] = "Liu et al. 2024, arXiv 2402.01878"

    beta: float = 0.05
    mean_over_pairs: bool = False

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "reference:answers", "value:scores"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        ratio = log_ratio(answers)
        labels = inputs.value("scores").to(ratio)
        weight = lambda_weights(ratio.detach(), labels, answers.present)
        loss = pair_matrix(ratio, weight, self.beta)
        if self.mean_over_pairs:
            loss = loss / (weight > 0).sum((-2, -1)).clamp(min=1)
        metrics = list_metrics(answers, labels, ratio, self.beta)
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class PRO:
    """The best answer against all, then the next best against the rest, with the best one's likelihood.

    Scores are token means without a reference, sharpened by the differences of reward. A step whose later answers all
    have the same reward as its own would add a constant, and is left out.

    Args:
        sft_weight: Weight of the best answer's negative log-likelihood (a sum), times (K - 1)^2.
    """

    name: ClassVar[str] = "pro"
    formula: ClassVar[str] = "sum_k -log softmax(S_k T_k; S_j (r_k - r_j), j > k) - sft_weight (K - 1)^2 L(y_1)"
    source: ClassVar[str] = "Song et al. 2023, arXiv 2306.17492"

    sft_weight: float = 0.05

    def __post_init__(self) -> None:
        not_negative(sft_weight=self.sft_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "value:scores"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        means, (order, present, rewards) = log_prob(answers, mean=True), ranked(answers, inputs.value("scores"))
        scores = means.gather(-1, order)
        gap = (rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).to(scores)
        count = scores.shape[-1]
        later = torch.ones(count, count, dtype=torch.bool, device=gap.device).triu(1)
        there = later & present.unsqueeze(-1) & present.unsqueeze(-2)
        sharpest = gap.masked_fill(~there, 0.0).amax(-1)
        used = sharpest > 0
        diagonal = torch.diag_embed(scores * sharpest)
        logits = torch.where(there, gap * scores.unsqueeze(-2), -torch.inf)
        # A row that is left out is given one harmless entry: -inf alone has no gradient.
        logits = torch.where(torch.eye(count, dtype=torch.bool, device=gap.device), diagonal, logits)
        steps = torch.where(used, softmax_ce(logits), 0.0)
        best = log_prob(answers).gather(-1, order[..., :1]).squeeze(-1)
        rank = steps.sum(-1)
        loss = rank - self.sft_weight * (present.sum(-1) - 1) ** 2 * best
        metrics = list_metrics(answers, inputs.value("scores"), means, 1.0) | {"rank_loss": rank.detach()}
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class KnowPAT:
    """Pulls up every answer but the worst as far as it is not yet low, and pushes down the ones below it.

    Scores are token means without a reference. The average over steps is over K - 1 of them (the released code divides
    by 3), and answers of equal score have weight 0 (there 0 / 0).

    Args:
        align_weight: Weight of the alignment term.
    """

    name: ClassVar[str] = "knowpat"
    formula: ClassVar[str] = (
        "align_weight / (K - 1) sum_i mu_i [softplus(-S_i) + mean over j > i of softplus(S_j)] - S_1"
    )
    source: ClassVar[str] = "Zhang et al. 2023, arXiv 2311.06503"

    align_weight: float = 0.1

    def __post_init__(self) -> None:
        not_negative(align_weight=self.align_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "value:scores"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        means, (order, present, _) = log_prob(answers, mean=True), ranked(answers, inputs.value("scores"))
        scores = means.gather(-1, order)
        fixed = scores.detach()
        low = fixed.masked_fill(~present, torch.inf).amin(-1, keepdim=True)
        high = fixed.masked_fill(~present, -torch.inf).amax(-1, keepdim=True)
        spread = high - low
        mu = torch.where(spread > 0, (fixed - low) / torch.where(spread > 0, spread, 1.0), 0.0)
        below = torch.where(present, softplus(scores), 0.0)
        after = below.flip(-1).cumsum(-1).flip(-1) - below
        later = present.sum(-1, keepdim=True) - present.cumsum(-1)
        step = mu * (softplus(-scores) + after / later.clamp(min=1))
        align = torch.where(present & (later > 0), step, 0.0).sum(-1) / (present.sum(-1) - 1).clamp(min=1)
        loss = self.align_weight * align - scores[..., 0]
        metrics = list_metrics(answers, inputs.value("scores"), means, 1.0) | {"align_loss": align.detach()}
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class RRHF:
    """Hinge between every better and worse answer's token mean, with the best one's likelihood (also CycleAlign).

    Args:
        sft_weight: Weight of the best answer's negative log-likelihood, a sum over tokens.
    """

    name: ClassVar[str] = "rrhf"
    formula: ClassVar[str] = "sum over i better than j of relu(L_j/n_j - L_i/n_i) - sft_weight L(y_1)"
    source: ClassVar[str] = "Yuan et al. 2023, arXiv 2304.05302; CycleAlign, 2023, arXiv 2310.16271"

    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative(sft_weight=self.sft_weight)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "value:scores"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers, scores = inputs.side("answers"), inputs.value("scores")
        means, (order, _, _) = log_prob(answers, mean=True), ranked(answers, scores)
        weight = better(scores, answers.present).to(means)
        rank = pair_matrix(means, weight, link="hinge")
        loss = rank - self.sft_weight * log_prob(answers).gather(-1, order[..., :1]).squeeze(-1)
        metrics = list_metrics(answers, scores, means, 1.0) | {"rank_loss": rank.detach()}
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class TRPA:
    """All pairs of levels (1 right, 2 wrong, 3 unfinished, 4 malformed), kept near the policy that answered.

    The pairs' value "levels" (B, K); the tokens' value "old_logps" is what the sampling policy gave the answers.

    Args:
        beta: How strongly the policy is held to the reference.
        right_scale: Pairs with a right answer count this much more.
        kl_weight: Weight of the divergence from the sampling policy.
        alone: Push a list up or down as a whole where all its levels are equal.
    """

    name: ClassVar[str] = "trpa"
    formula: ClassVar[str] = (
        "mean over level_i < level_j of -s(beta a_i (lrm_i - lrm_j)) + kl_weight mean k3(old, policy)"
    )
    source: ClassVar[str] = "Trust region preference approximation, 2025, arXiv 2504.04524"

    beta: float = 0.1
    right_scale: float = 2.5
    kl_weight: float = 1e-3
    alone: bool = True

    def __post_init__(self) -> None:
        positive(beta=self.beta, right_scale=self.right_scale)
        not_negative(kl_weight=self.kl_weight)

    @property
    def needs(self) -> frozenset[Need]:
        base = frozenset(("side:answers", "reference:answers", "value:levels"))
        return base | {"tokens:old_logps"} if self.kl_weight else base

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        ratio = log_ratio(answers, mean=True)
        levels = inputs.value("levels").to(ratio)
        right = levels == 1
        weight = better(-levels, answers.present).to(ratio)
        count = weight.sum((-2, -1))
        scale = self.beta * torch.where(right, self.right_scale, 1.0).to(ratio).unsqueeze(-1)
        ranked_loss = pair_matrix(ratio, weight, scale) / count.clamp(min=1)
        loss = ranked_loss
        if self.alone:
            single = torch.where(right, soft_pair(ratio), soft_pair(-ratio))
            loss = torch.where(count > 0, ranked_loss, reduce_tokens(single, answers.present, mean=True))
        metrics = list_metrics(answers, -levels, ratio, self.beta)
        if self.kl_weight:
            gap = (answers.tokens("old_logps") - answers.token_logps).masked_fill(~answers.mask, 0.0).clamp(-10, 10)
            tokens = answers.mask.flatten(-2)
            kl = reduce_tokens((gap.exp() - gap - 1).flatten(-2), tokens, mean=True)
            loss = loss + self.kl_weight * kl
            metrics["kl"] = kl.detach()
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class SAMI:
    """Which answer belongs to which constitution, and the reverse: a bound on their mutual information.

    The side "answers" has shapes (B, N, N, T): at i, j answer j, sampled under constitution j, in the context of
    constitution i.
    """

    name: ClassVar[str] = "sami"
    formula: ClassVar[str] = "(CE over rows + CE over columns of M) / 2, M_ij = L(y_j | c_i, x) / n_j"
    source: ClassVar[str] = "Fraenken et al. 2024, arXiv 2404.14313"
    axes: ClassVar[Mapping[Need, str]] = {"side:answers": "NN"}

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        means = log_prob(inputs.side("answers"), mean=True)
        rows, columns = softmax_ce(means).mean(-1), softmax_ce(means.mT).mean(-1)
        target = torch.arange(means.shape[-1], device=means.device)
        metrics = {
            "rows": rows.detach(),
            "columns": columns.detach(),
            "accuracy": (means.argmax(-1) == target).to(means.dtype).mean(-1),
        }
        return LossOutput(loss=0.5 * (rows + columns), metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class SteerLM:
    """An attribute-conditioned model towards its own posterior, by importance weights on its frozen start's samples.

    Of every answer the pairs' values "log_attributes" log P(a|x,y), "log_prior" log P(y|x) and "log_proposal"
    log Q'(y|a,x), each (B, K).
    """

    name: ClassVar[str] = "steerlm"
    formula: ClassVar[str] = "KL(w || b), w = softmax(log P(a|y) + log P(y) - log Q'), b = softmax(L - log Q')"
    source: ClassVar[str] = "SteerLM 2.0: HelpSteer2, Wang et al. 2024, arXiv 2406.08673"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "value:log_attributes", "value:log_prior", "value:log_proposal"))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        logps, absent = log_prob(answers), ~answers.present
        attributes, prior, proposal = (
            inputs.value(f"log_{name}").to(logps).masked_fill(absent, 0.0)
            for name in ("attributes", "prior", "proposal")
        )
        least = torch.finfo(logps.dtype).min
        wanted = (attributes + prior - proposal).masked_fill(absent, least).log_softmax(-1)
        now = (logps - proposal).masked_fill(absent, least).log_softmax(-1)
        difference = (wanted - now).masked_fill(absent, 0.0)
        loss = (wanted.exp() * difference).sum(-1)
        metrics = list_metrics(answers, wanted, now, 1.0) | {"largest_weight": wanted.exp().amax(-1)}
        return LossOutput(loss=loss, metrics=metrics)


def ranked(answers: Completions, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B, K) of the answers from best to worst, absent ones last; in that order which are there, and scores."""
    order = scores.masked_fill(~answers.present, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order, answers.present.gather(-1, order), scores.gather(-1, order)


def better(scores: Tensor, present: Tensor) -> Tensor:
    """Whether answer i is better than answer j, and both are there, (B, K, K) bool."""
    above = scores.unsqueeze(-1) > scores.unsqueeze(-2)
    return above & present.unsqueeze(-1) & present.unsqueeze(-2)


@torch.no_grad()
def list_metrics(
    answers: Completions, scores: Tensor, rewards: Tensor, beta: float, *, change: Tensor | None = None
) -> dict[str, Tensor]:
    """What a list-wise run is watched by: `rewards` (B, K) times beta are ranked against `scores` (B, K).

    Best and worst are those of the scores; both changes of log-probability are there to show likelihood displacement:
    `change` (B, K) where it is given, else since the reference where there is one.
    """
    order, present, _ = ranked(answers, scores)
    last = (present.sum(-1, keepdim=True) - 1).clamp(min=0)
    pairs = better(scores, answers.present)
    right = pairs & (rewards.unsqueeze(-1) > rewards.unsqueeze(-2))

    def ends(values: Tensor) -> tuple[Tensor, Tensor]:
        ordered = values.gather(-1, order)
        return ordered[..., 0], ordered.gather(-1, last).squeeze(-1)

    best, worst = ends(rewards)
    shown = {
        "margin": beta * (best - worst),
        "accuracy": right.sum((-2, -1)) / pairs.sum((-2, -1)).clamp(min=1).to(rewards.dtype),
    }
    changes = [("logps", log_prob(answers))]
    if change is None and answers.reference_token_logps is not None:
        change = log_ratio(answers)
    if change is not None:
        changes.append(("logps_change", change))
    for name, values in changes:
        shown[f"best_{name}"], shown[f"worst_{name}"] = ends(values)
    return {name: value.detach() for name, value in shown.items()}
