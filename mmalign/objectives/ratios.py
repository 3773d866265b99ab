"""Log-probs of whole completions, and the numbers that a preference run is watched by."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.objectives.terms import reduce_tokens
from mmalign.objectives.types import Completions, LossInputs


def log_prob(side: Completions, weight: Tensor | None = None, *, mean: bool = False) -> Tensor:
    """Log-prob of the completion under the policy (B,): the sum over tokens, weighted, or the mean."""
    return reduce_tokens(side.token_logps, side.mask, weight, mean=mean)


def log_ratio(side: Completions, weight: Tensor | None = None, *, mean: bool = False) -> Tensor:
    """Log-ratio of policy to reference (B,): the sum over tokens, weighted, or the mean.

    Policy and reference are summed before they are subtracted, the order in which TRL rounds.
    """
    return log_prob(side, weight, mean=mean) - reduce_tokens(side.reference, side.mask, weight, mean=mean)


@torch.no_grad()
def preference_metrics(inputs: LossInputs, chosen: Tensor, rejected: Tensor, beta: Tensor | float) -> dict[str, Tensor]:
    """What a preference run is watched by: rewards are beta times the scores (B,) given, the rest whole texts.

    Both changes of log-probability are there to show likelihood displacement: the chosen text losing ground too. They
    are left out where there is no reference.
    """
    shown = {
        "chosen_reward": beta * chosen,
        "rejected_reward": beta * rejected,
        "margin": beta * (chosen - rejected),
        "accuracy": (chosen > rejected).to(chosen.dtype),
    }
    sides = [(name, inputs.sides[name]) for name in ("chosen", "rejected") if name in inputs.sides]
    shown |= {f"{name}_logps": log_prob(side) for name, side in sides}
    changes = {f"{n}_logps_change": log_ratio(s) for n, s in sides if s.reference_token_logps is not None}
    return {name: value.detach() for name, value in (shown | changes).items()}
