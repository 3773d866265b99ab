"""What an objective is given and what it gives back.

An objective is a frozen dataclass of its parameters that is called with `LossInputs` and returns `LossOutput`. It knows
nothing of models, devices, media or ranks: the trainer runs the forwards that `needs` names, calls it, and averages.
Shapes: B pairs, T the longest completion among them, padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

#: What the trainer must compute: the log-probs of a side under the policy, the reference's log-probs of every side that
#: is computed, and the tokens that lie in the spans where the two texts differ in content.
Need = Literal["chosen", "rejected", "reference", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """What one forward says about one completion of every pair.

    `token_logps` (B, T), nats, 0 on padding; `mask` (B, T) bool, True on completion tokens, end of turn included;
    `reference_token_logps` (B, T), detached; `changed` (B, T) bool, tokens in a span that differs from the other side.
    """

    token_logps: Tensor
    mask: Tensor
    reference_token_logps: Tensor | None = None
    changed: Tensor | None = None

    @property
    def reference(self) -> Tensor:
        """The reference's log-probs (B, T) without gradient. Raises ValueError when no forward computed them."""
        if self.reference_token_logps is None:
            raise ValueError("the objective reads reference log-probs but does not name 'reference' in its needs")
        return self.reference_token_logps.detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One micro-batch of pairs.

    `sides` holds one `Completions` per forward, by name: "chosen", "rejected", and whatever further forwards an
    objective asks for (another context, the k-th answer of a list). `p` (B,) is the probability that the label is
    right. `values` holds further numbers that the pairs carry, each with B as its first axis. The pair's `weight` is
    not here: the trainer applies it to whatever an objective returns.
    """

    sides: Mapping[str, Completions]
    p: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def chosen(self) -> Completions:
        return self.sides["chosen"]

    @property
    def rejected(self) -> Completions:
        return self.sides["rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """Loss and metrics per pair.

    `loss` (B,) is averaged over the pairs of an optimizer step. `pooled` maps a side to the sum (B,) of a token loss
    over that side's completion tokens, which the trainer divides by the number of those tokens in the whole optimizer
    step; so neither micro-batches nor ranks change a token mean. `metrics` are detached tensors (B,), averaged for the
    log.
    """

    loss: Tensor
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A pure function from tensors to one loss per pair; its parameters are the fields of a frozen dataclass."""

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """The forwards and masks that must be computed for it."""

    def __call__(self, inputs: LossInputs, /) -> LossOutput: ...
