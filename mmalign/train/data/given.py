"""What the trainer itself gives to objectives, and the other models that `train.models` names for them."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.objectives import Need, Objective
from mmalign.objectives.heads import HEADS
from mmalign.train.config import TrainConfig

#: What any pair of two answers gives.
OF_PAIRS = ("chosen", "rejected", "reference", "changed", "phrases", "divergence")
#: What the trainer gives, whatever else the pairs are.
OF_TRAINER = ("memory", "progress", "whole_step", "states", *(f"head:{name}" for name in HEADS))
#: The token values that the start of the run gives: it is the policy that the answers are taken to be sampled from.
OLD = "old_logps"
#: The source that the adapter, switched off, gives; and the one that is the forward itself.
REFERENCE, POLICY = "reference", "policy"


def given(config: TrainConfig, sides: Sequence[str]) -> frozenset[Need]:
    """Needs that are met by trainer and `config.models`, and by `sides` that all pairs carry, as sources of logits."""
    sources = {POLICY, *config.models, *sides} | ({REFERENCE} if config.lora is not None else set())
    logits = {f"logits:{name}" for name in sources}
    return frozenset((*OF_PAIRS, *OF_TRAINER)) | logits | {f"tokens:{name}" for name in (OLD, *config.models)}


def token_models(objective: Objective) -> tuple[str, ...]:
    """The models whose log-probs, less those of the reference, are token values that `objective` reads."""
    return tuple(name for name in _named(objective, "tokens") if name != OLD)


def logit_sources(objective: Objective) -> tuple[str, ...]:
    """What `objective` reads whole distributions of, beside the policy's own."""
    return tuple(name for name in _named(objective, "logits") if name != POLICY)


def _named(objective: Objective, kind: str) -> list[str]:
    return sorted(need.partition(":")[2] for need in objective.needs if need.startswith(f"{kind}:"))
