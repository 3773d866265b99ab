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

#: The axes, beside that of the pairs, of what pairs carry: a letter or a number each; none for one answer, one number.
#: A letter is the same length wherever it stands: in all that a pair carries for one of `RAGGED`, in all pairs for
#: others. "?" says that a pair may have no such answer, or not know a number.
AXES: Final[dict[Need, str]] = {
    "side:answers": "K",
    "side:answers_alone": "K",
    "side:first_turn": "K",
    "side:second_turn": "K",
    "side:samples": "S",
    "side:degraded": "D",
    "side:verdict_chosen": "2",
    "side:verdict_rejected": "2",
    "side:chosen_damaged": "?",
    "side:rationale": "?",
    "side:judged": "?",
    **dict.fromkeys(("value:scores", "value:levels", "value:rewards", "value:similarity", "value:gaps"), "K"),
    **dict.fromkeys(("value:first_rewards", "value:second_rewards"), "K"),
    **dict.fromkeys(("value:log_attributes", "value:log_prior", "value:log_proposal"), "K"),
    "value:preferences": "KK",
    "value:degrees": "D",
    "value:chosen_sources": "M",
    "value:rejected_sources": "M",
    "value:teacher_means": "M?",
    "value:attributes": "A?",
}
#: Values that are indices from 0, and the parameter that says below what; None where the pairs themselves tell.
INDICES: Final[dict[Need, str | None]] = {
    "value:annotator": "annotators",
    "value:source": "sources",
    "value:user": None,
    "value:degrees": None,
}
#: Axes along the answers of a list, which can differ in length from pair to pair.
RAGGED: Final = ("K", "S", "D")
_SINGLE: Final = (
    "side:greedy side:sample side:gold side:mismatched side:fulfilled side:missed side:chosen_favoured "
    "side:rejected_favoured side:chosen_after_rejected side:rejected_after_chosen side:chosen_after_chosen "
    "side:rejected_after_rejected side:chosen_view side:rejected_view side:no_history value:gap value:chosen_win_rate "
    "value:rejected_win_rate value:chosen_reward value:rejected_reward value:annotator value:absolute value:strength "
    "value:peer_margin value:source value:user"
).split()


def axes(need: Need, objective: Objective | None = None) -> str | None:
    """The `AXES` of what pairs carry for a need; None for a name that is not known.

    `objective` may have other ones for it, in an attribute `axes`, or one of the parts of a sum may.
    """
    for part in _parts(objective):
        if (own := getattr(part, "axes", {}).get(need)) is not None:
            return str(own)
    return AXES.get(need, "" if need in _SINGLE else None)


def index_limit(need: Need, objective: Objective) -> int | None:
    """Below what the numbers of a need in `INDICES` must be, for all parts of a sum; None for no limit."""
    name = INDICES[need]
    limits = [] if name is None else [getattr(part, name) for part in _parts(objective) if need in part.needs]
    return min(limits, default=None)


def has_even_lists(objective: Objective) -> bool:
    """Whether all lists must have the same length for all pairs, as an attribute `even_lists` says."""
    return any(getattr(part, "even_lists", False) for part in _parts(objective))


def _parts(objective: Objective | None) -> list[Objective]:
    """An objective, or those that it is the sum of."""
    if objective is None:
        return []
    return [inner for _, part in getattr(objective, "parts", ()) for inner in _parts(part)] or [objective]


def refuse_unmet(objective: Objective, provided: Collection[Need]) -> None:
    """Raise ValueError, one line, when an objective needs something that is not among `provided`."""
    if absent := sorted(set(objective.needs) - set(provided)):
        told = "; ".join(f"{need} ({meaning(need)})" for need in absent)
        named = any(need.startswith(("logits:", "tokens:")) for need in absent)
        remedy = "; `train.models` names other models" if named else ""
        raise ValueError(
            f"objective {objective.name} needs what these pairs and this trainer do not give: {told}{remedy}"
        )


def meaning(need: Need) -> str:
    """What a need is, in words. Raises ValueError for one that is neither a word nor of a known kind."""
    kind, colon, name = need.partition(":")
    if not colon and need in WORDS:
        return WORDS[need]
    if colon and name and kind in KINDS:
        return KINDS[kind]
    raise ValueError(f"{need!r} is no need; known are {', '.join(WORDS)}, and {', '.join(f'{k}:name' for k in KINDS)}")
