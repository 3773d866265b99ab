"""The words in which an objective says what it needs, and the one line that refuses what cannot be had."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mmalign.objectives.types import Need, Objective

#: Needs without a name of their own.
WORDS: Final[dict[str, str]] = {
    "chosen": "log-probs of the chosen text under the policy",
    "rejected": "log-probs of the rejected text under the policy",
    "reference": "log-probs of these two under the reference",
    "changed": "the tokens in which the two texts differ in content",
    "phrases": "pairs with at least one such token; others are left out, as they would teach nothing",
    "divergence": "KL(reference || policy) at every token of the chosen text",
    "states": "the hidden state that a head reads of every side",
    "memory": "numbers kept from step to step and saved in checkpoints",
    "progress": "the share of the training's steps that are done",
    "whole_step": "all pairs of an optimizer step in one micro-batch",
}
#: Needs of the form "kind:name".
KINDS: Final[dict[str, str]] = {
    "side": "one more completion per pair, or a list of them, under the policy",
    "reference": "log-probs of that side under the reference",
    "value": "a number, or a row of numbers, that every pair carries",
    "tokens": "a number per token of every side, computed before training",
    "logits": "whole next-token distributions, streamed: the policy's, another model's or another context's",
    "head": "a module of mmalign.objectives.heads on the model's last hidden state",
}


def refuse_unmet(objective: Objective, provided: Collection[Need]) -> None:
    """Raise ValueError, one line, when an objective needs something that is not among `provided`."""
    if absent := sorted(set(objective.needs) - set(provided)):
        told = "; ".join(f"{need} ({meaning(need)})" for need in absent)
        raise ValueError(f"objective {objective.name} needs what these pairs and this trainer do not give: {told}")


def meaning(need: Need) -> str:
    """What a need is, in words. Raises ValueError for one that is neither a word nor of a known kind."""
    kind, colon, name = need.partition(":")
    if not colon and need in WORDS:
        return WORDS[need]
    if colon and name and kind in KINDS:
        return KINDS[kind]
    raise ValueError(f"{need!r} is no need; known are {', '.join(WORDS)}, and {', '.join(f'{k}:name' for k in KINDS)}")
