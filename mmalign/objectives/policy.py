"""Policy gradients on the policy's own answers, and the rewards and advantages that papers shape for them.

The side "answers" has shapes (B, K, T); the tokens' value "old_logps" is what the policy that sampled them gave them.
All groups have K answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmalign.objectives.checks import not_negative, one_of, positive, require
from mmalign.objectives.lists import list_metrics
from mmalign.objectives.ratios import log_prob, log_ratio
from mmalign.objectives.shaping import (
    group_advantage,
    hardness,
    left_out_advantage,
    sar_reward,
    score_rewards,
    win_rates,
)
from mmalign.objectives.terms import clipped_pg, reduce_tokens
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """The clipped surrogate of every token, with the answer's reward relative to its group as advantage.

    The pairs' value "rewards" (B, K).

    Args:
        clip: Ratios to the sampling policy are clipped to 1 +- clip.
        normalise: Divide the rewards of a group by their standard deviation.
    """

    name: ClassVar[str] = "grpo"
    formula: ClassVar[str] = "mean_k mean_t max(-A rho, -A clip(rho)), A = (r - mean r) / std r"
    source: ClassVar[str] = "Shao et al. 2024, arXiv 2402.03300"
    even_lists: ClassVar[bool] = True
    more_needs: ClassVar[frozenset[Need]] = frozenset(("value:rewards",))

    clip: float = 0.2
    normalise: bool = True

    def __post_init__(self) -> None:
        require(0 < self.clip < 1, "clip", self.clip, "more than 0 and below 1")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("side:answers", "tokens:old_logps")) | self.more_needs

    def rewards(self, inputs: LossInputs) -> Tensor:
        """What every answer is worth (B, K)."""
        return inputs.value("rewards")

    def advantages(self, inputs: LossInputs) -> Tensor:
        """What every answer is worth more than its group (B, K)."""
        return group_advantage(self.rewards(inputs), normalise=self.normalise)

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        answers = inputs.side("answers")
        advantage = self.advantages(inputs).to(answers.token_logps)
        loss, metrics = surrogate(answers, advantage, self.clip)
        rewards, moved = self.rewards(inputs).to(loss), moved_since_sampling(answers)
        metrics |= {"reward": rewards.mean(-1), "advantage": advantage.abs().mean(-1)}
        metrics |= list_metrics(answers, rewards, moved, 1.0, change=moved)
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class HardnessGRPO(GRPO):
    """GRPO whose advantages grow with how far an answer is from the demonstration (its formula, not its description).

    The pairs' values "similarity" to the demonstration and "gaps" in reward to it, each (B, K).

    Args:
        clip: Ratios to the sampling policy are clipped to 1 +- clip.
        normalise: Divide the rewards of a group by their standard deviation.
        threshold: Gaps farther (squared) than this from their mean are left out of the model's responsiveness.
    """

    name: ClassVar[str] = "grpo_s"
    formula: ClassVar[str] = (
        "GRPO, A_i = sg(1 - W_i) / sg(mean) * sg(mean kept gap) / sg(mean gap) * (r_i - mean r) / std r"
    )
    source: ClassVar[str] = "DR-IRL, 2025"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("value:rewards", "value:similarity", "value:gaps"))

    threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(threshold=self.threshold)

    def advantages(self, inputs: LossInputs) -> Tensor:
        return super().advantages(inputs) * hardness(inputs.value("similarity"), inputs.value("gaps"), self.threshold)


@dataclass(frozen=True, kw_only=True)
class SAR(GRPO):
    """GRPO with a reward for answers that the question makes likelier: against padding and generic text.

    The side "answers_alone" is the same answers without the question. It collapses without rewards of another kind.

    Args:
        clip: Ratios to the sampling policy are clipped to 1 +- clip.
        normalise: Divide the rewards of a group by their standard deviation.
        alpha: Weight of that reward.
    """

    name: ClassVar[str] = "sar"
    formula: ClassVar[str] = "GRPO, R = r + alpha clip(1 - ppl(a|q) / ppl(a), -1, 1)"
    source: ClassVar[str] = "Self-aligned reward, 2025"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("value:rewards", "side:answers_alone"))

    normalise: bool = False
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(alpha=self.alpha)

    def rewards(self, inputs: LossInputs) -> Tensor:
        alone, answered = (log_prob(inputs.side(name), mean=True).detach() for name in ("answers_alone", "answers"))
        return inputs.value("rewards").to(alone) + self.alpha * sar_reward(alone, answered)


@dataclass(frozen=True, kw_only=True)
class SelfPlay(GRPO):
    """GRPO with the rate at which an answer beats the others of its group; preferences need not be transitive.

    The pairs' value "preferences" (B, K, K), P_ij that answer i beats answer j, both orders averaged.
    """

    name: ClassVar[str] = "spo_self_play"
    formula: ClassVar[str] = "GRPO, r_i = mean over j of P(y_i beats y_j)"
    source: ClassVar[str] = "Self-play preference optimisation, Swamy et al. 2024, arXiv 2401.04056"
    more_needs: ClassVar[frozenset[Need]] = frozenset(("value:preferences",))

    def rewards(self, inputs: LossInputs) -> Tensor:
        return win_rates(inputs.value("preferences"), include_self=False)


@dataclass(frozen=True, kw_only=True)
class SCoRe:
    """Two turns, the second corrects the first; the second is paid for its progress.

    Sides "first_turn" and "second_turn" (B, K, T), values "first_rewards" and "second_rewards" (B, K). Advantages are
    left-one-out; the KL of a turn is its log-ratio to the reference, taken from its reward.

    Args:
        stage: 1 holds the first turn in place and pays for the second only; 2 pays for both, and for progress.
        alpha: Weight of the progress in stage 2.
        kl: Weight of the KL of both turns.
        first_kl: Weight of the first turn's KL in stage 1.
        clip: Ratios to the sampling policy are clipped to 1 +- clip.
    """

    name: ClassVar[str] = "score"
    formula: ClassVar[str] = "policy gradient, turn 1: r1, turn 2: r2 + alpha (r2 - r1); stage 1: r2 - first_kl KL_1"
    source: ClassVar[str] = "Kumar et al. 2024, arXiv 2409.12917"
    even_lists: ClassVar[bool] = True

    stage: Literal[1, 2] = 2
    alpha: float = 10.0
    kl: float = 0.01
    first_kl: float = 0.1
    clip: float = 0.2

    def __post_init__(self) -> None:
        require(self.stage in (1, 2), "stage", self.stage, "1 or 2")
        require(0 < self.clip < 1, "clip", self.clip, "more than 0 and below 1")
        not_negative(alpha=self.alpha, kl=self.kl, first_kl=self.first_kl)

    @property
    def needs(self) -> frozenset[Need]:
        turns = ("first_turn", "second_turn")
        named = {f"{kind}:{turn}" for kind in ("side", "reference") for turn in turns}
        return frozenset(named | {"tokens:old_logps", "value:first_rewards", "value:second_rewards"})

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        turns = inputs.side("first_turn"), inputs.side("second_turn")
        kls = [log_ratio(turn).detach() for turn in turns]
        r1, r2 = (inputs.value(f"{which}_rewards").to(kls[0]) for which in ("first", "second"))
        earned = (-self.first_kl * kls[0], r2) if self.stage == 1 else (r1, score_rewards(r1, r2, self.alpha))
        loss, metrics = torch.zeros_like(r1[..., 0]), {"first_reward": r1.mean(-1), "second_reward": r2.mean(-1)}
        for name, turn, reward, kl in zip(("first", "second"), turns, earned, kls, strict=True):
            part, numbers = surrogate(turn, left_out_advantage(reward - self.kl * kl), self.clip)
            loss = loss + part
            metrics |= {f"{name}_{key}": value for key, value in numbers.items()} | {f"{name}_kl": kl.mean(-1)}
        return LossOutput(loss=loss, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class P3O:
    """The clipped pairwise policy gradient: two own answers, their rewards compared; offsets of reward cancel.

    Sides "chosen" and "rejected" in any order, values "chosen_reward" and "rejected_reward".

    Args:
        beta: Weight of the log-ratio to the reference that is taken from the rewards.
        clip: Ratios to the sampling policy are clipped to 1 +- clip.
        form: joint clips the ratio of the two ratios, separate each of them (which is RLOO with two answers).
    """

    name: ClassVar[str] = "p3o"
    formula: ClassVar[str] = "max(-A rho, -A clip(rho)) / 2, rho = rho_1 / rho_2, A = r_1 - r_2 - beta (lr_1 - lr_2)"
    source: ClassVar[str] = "Wu et al. 2023, arXiv 2310.00212"

    beta: float = 0.05
    clip: float = 0.2
    form: Literal["joint", "separate"] = "joint"

    def __post_init__(self) -> None:
        not_negative(beta=self.beta)
        require(0 < self.clip < 1, "clip", self.clip, "more than 0 and below 1")
        one_of(("joint", "separate"), form=self.form)

    @property
    def needs(self) -> frozenset[Need]:
        base = frozenset(("chosen", "rejected", "tokens:old_logps", "value:chosen_reward", "value:rejected_reward"))
        return base | {"reference"} if self.beta else base

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        sides = inputs.chosen, inputs.rejected
        advantage = inputs.value("chosen_reward") - inputs.value("rejected_reward")
        if self.beta:
            advantage = advantage - self.beta * (log_ratio(sides[0]) - log_ratio(sides[1])).detach()
        moved = [moved_since_sampling(side) for side in sides]
        if self.form == "joint":
            loss = 0.5 * clipped_pg(moved[0] - moved[1], advantage, self.clip)
            clipped = is_clipped(moved[0] - moved[1], advantage, self.clip)
        else:
            loss = 0.5 * (clipped_pg(moved[0], advantage, self.clip) + clipped_pg(moved[1], -advantage, self.clip))
            clipped = is_clipped(moved[0], advantage, self.clip) / 2 + is_clipped(moved[1], -advantage, self.clip) / 2
        is_first = inputs.value("chosen_reward") >= inputs.value("rejected_reward")
        first, second = (change.detach() for change in moved)
        best, worst = torch.where(is_first, first, second), torch.where(is_first, second, first)
        metrics = {
            "margin": best - worst,
            "accuracy": (best > worst).to(loss),
            "best_logps_change": best,
            "worst_logps_change": worst,
            "advantage": advantage.abs().to(loss),
            "clip_share": clipped.to(loss),
        }
        return LossOutput(loss=loss, metrics=metrics)


def moved_since_sampling(answers: Completions) -> Tensor:
    """By how much the log-prob of answers (..., T) has changed since they were sampled."""
    return log_prob(answers) - reduce_tokens(answers.tokens("old_logps"), answers.mask)


def surrogate(answers: Completions, advantage: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (B,) of answers (B, K, T): mean over tokens, then over answers; and what was clipped."""
    mask = answers.mask
    moved = (answers.token_logps - answers.tokens("old_logps")).masked_fill(~mask, 0.0)
    wide = advantage.unsqueeze(-1).expand_as(moved)
    loss = reduce_tokens(clipped_pg(moved, wide, clip), mask, mean=True)
    share = reduce_tokens(is_clipped(moved, wide, clip).to(loss.dtype), mask, mean=True)
    fixed = moved.detach().clamp(-20, 20)
    drift = reduce_tokens((-fixed).exp() + fixed - 1, mask, mean=True)
    present = answers.present
    metrics = {
        "clip_share": reduce_tokens(share, present, mean=True),
        "kl_to_old": reduce_tokens(drift, present, mean=True),
    }
    return reduce_tokens(loss, present, mean=True), metrics


@torch.no_grad()
def is_clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Whether the clip takes the gradient away."""
    ratio = log_ratio.clamp(-20, 20).exp()
    return ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
