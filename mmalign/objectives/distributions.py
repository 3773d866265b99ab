"""Functions of whole next-token distributions, and how they are streamed so that none has to be kept.

Logits (..., V) in, one number per token (...) out, in float32 or better. What must not learn is detached by callers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from mmalign.objectives.types import TokenTerm

#: Tokens whose vocabulary rows are held at a time.
CHUNK = 64

Logits = Mapping[str, Tensor]


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probs (...) of `labels` (...) under `logits` (..., V)."""
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def token_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) (...) of two logits (..., V)."""
    ours, theirs = first.log_softmax(-1), second.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def token_expect(logits: Tensor, values: Tensor) -> Tensor:
    """Expectation (...) of `values` (..., V) under `logits` (..., V)."""
    return (logits.softmax(-1) * values).sum(-1)


def log_sum_squares(logits: Tensor) -> Tensor:
    """Log of the sum of squared probabilities (...): the chance that two draws agree."""
    return (2 * logits.log_softmax(-1)).logsumexp(-1)


def extrapolated(logits: Logits, labels: Tensor, distance: float) -> dict[str, Tensor]:
    """Term "extrapolated": log-probs under (1 + distance) policy - distance reference, without gradient."""
    with torch.no_grad():
        return {"extrapolated": token_logps((1 + distance) * logits["policy"] - distance * logits["reference"], labels)}


def forward_kl(logits: Logits, labels: Tensor) -> dict[str, Tensor]:
    """Term "kl": KL(teacher || policy)."""
    return {"kl": token_kl(logits["teacher"].detach(), logits["policy"])}


def align_distil(logits: Logits, labels: Tensor, beta: float, spread: float) -> dict[str, Tensor]:
    """Terms "loss": (beta / w) KL(policy || q), and "weight": w = spread |p_dpo - p_reverse|_1 + 1e-3.

    q is the DPO teacher moved on by w from the reverse one.
    """
    with torch.no_grad():
        good, bad = logits["dpo"], logits["reverse_dpo"]
        weight = spread * (good.softmax(-1) - bad.softmax(-1)).abs().sum(-1) + 1e-3
        target = good + weight.unsqueeze(-1) * (good - bad)
    return {"loss": beta / weight * token_kl(logits["policy"], target), "weight": weight}


def teacher_advantage(logits: Logits, labels: Tensor, clip: float) -> dict[str, Tensor]:
    """Term "advantage": what the policy expects of log p_teacher - log p_teacher_reference, held within the clip."""
    with torch.no_grad():
        gain = logits["teacher"].log_softmax(-1) - logits["teacher_reference"].log_softmax(-1)
    return {"advantage": token_expect(logits["policy"], gain.clamp(-clip, clip))}


def history_effect(logits: Logits, labels: Tensor, *, detach: bool) -> dict[str, Tensor]:
    """Terms "nll" with the history, "difference_nll" of the difference of logits, "gain": p with less p without it."""
    with_history, without = logits["policy"], logits["no_history"]
    gain = token_logps(with_history, labels).exp() - token_logps(without, labels).exp()
    difference = with_history - (without.detach() if detach else without)
    return {
        "nll": _nll(with_history, labels),
        "difference_nll": _nll(difference, labels),
        "gain": gain.detach(),
    }


def agreement(logits: Logits, labels: Tensor) -> dict[str, Tensor]:
    """Term "log_agreement": log sum p^2 of the policy, without gradient."""
    with torch.no_grad():
        return {"log_agreement": log_sum_squares(logits["policy"])}


def stream(
    term: TokenTerm, logits: Callable[[slice], Logits], labels: Tensor, mask: Tensor, chunk: int = CHUNK
) -> dict[str, Tensor]:
    """What `term` gives of all tokens, laid out as `mask` (B, T), 0 off the mask.

    `logits` makes, of a slice of the M tokens of the mask, row by row, the logits (C, V) of every source in float32;
    `labels` (M,) are their tokens. A chunk's distributions live only while it is computed, and are made again, by the
    same call, in the backward pass.
    """

    def part(piece: slice) -> dict[str, Tensor]:
        return dict(term.function(logits(piece), labels[piece]))

    pieces = [slice(start, min(start + chunk, len(labels))) for start in range(0, max(1, len(labels)), chunk)]
    found = [checkpoint(part, piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return {
        name: torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
        for name, values in ((name, torch.cat([one[name] for one in found])) for name in found[0])
    }


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
