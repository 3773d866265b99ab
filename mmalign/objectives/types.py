"""What an objective is given and what it gives back.

An objective is a frozen dataclass of its parameters that is called with `LossInputs` and returns `LossOutput`. It knows
nothing of models, devices, media or ranks: the trainer runs the forwards that `needs` names, calls it, and averages.
Shapes: B pairs, T the longest completion among them, padded on the right, K answers of a list, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

T = TypeVar("T")

#: What must be computed or read for an objective: one of the words of `mmalign.objectives.needs.WORDS` ("chosen",
#: "reference", ...), or "kind:name" with one of its KINDS ("side:damaged", "value:gap", ...).
Need = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """What one forward says about one completion of every pair, or about K: then every shape has K after B.

    `token_logps` (B, T), nats, 0 on padding; `mask` (B, T) bool, True on completion tokens, end of turn included; a row
    without any token says that the pair has no such completion; `reference_token_logps` (B, T), detached; `changed`
    (B, T) bool, tokens in a span that differs from the other side; `token_divergence` (B, T), nats, KL(reference ||
    policy) of the next-token distributions over the whole vocabulary that predict each completion token, 0 on padding,
    with gradient to the policy only; `token_values` maps the name of a need "tokens:name" to constants (B, T); `terms`
    maps names to what the objective's `TokenTerm` gave (B, T); `score` (B,) or (B, A) is what a head says of the
    completion and `state` (B, H) the hidden state that the head reads, both with gradient.
    """

    token_logps: Tensor
    mask: Tensor
    reference_token_logps: Tensor | None = None
    changed: Tensor | None = None
    token_divergence: Tensor | None = None
    token_values: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    score: Tensor | None = None
    state: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """(B,) bool, which pairs have this completion."""
        return self.mask.any(-1)

    @property
    def reference(self) -> Tensor:
        """The reference's log-probs (B, T) without gradient. Raises ValueError when no forward computed them."""
        return _there(self.reference_token_logps, "reference log-probs", "reference").detach()

    @property
    def divergence(self) -> Tensor:
        """The token-wise KL (B, T). Raises ValueError when no forward computed it."""
        return _there(self.token_divergence, "the divergence", "divergence")

    @property
    def scores(self) -> Tensor:
        """The head's scores (B,) or (B, A). Raises ValueError when there is no head."""
        return _there(self.score, "scores of a head", "head:...")

    @property
    def states(self) -> Tensor:
        """The hidden states (B, H) that a head reads. Raises ValueError when they were not kept."""
        return _there(self.state, "hidden states", "states")

    def tokens(self, name: str) -> Tensor:
        """The constants called `name`, (B, T), without gradient. Raises ValueError when there are none."""
        return _there(self.token_values.get(name), f"token values {name!r}", f"tokens:{name}").detach()

    def term(self, name: str) -> Tensor:
        """What the objective's token term gave under `name`, (B, T). Raises ValueError when it was not computed."""
        return _there(self.terms.get(name), f"the token term {name!r}", "logits:...")

    def span_weights(self, changed: float, unchanged: float) -> Tensor | None:
        """Weight (B, T) of every token: `changed` inside the marked spans, `unchanged` outside; None where both are 1.

        Raises ValueError when the spans are not known.
        """
        if changed == unchanged == 1:
            return None
        if self.changed is None:
            raise ValueError("weights of changed tokens need the changed spans of both texts")
        weight = self.token_logps.new_full(self.changed.shape, unchanged)
        return weight.masked_fill(self.changed, changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One micro-batch of pairs.

    `sides` holds one `Completions` per forward, by name: "chosen", "rejected", and whatever further forwards an
    objective asks for (another context, the answers of a list). `p` (B,) is the probability that the label is right.
    `values` holds further numbers that the pairs carry, each with B as its first axis. `memory` is what an objective
    that remembers knows of earlier steps; `progress` is the share of the training's steps that are done. The pair's
    `weight` is not here: the trainer applies it to whatever an objective returns.
    """

    sides: Mapping[str, Completions]
    p: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 1.0

    @property
    def chosen(self) -> Completions:
        return self.side("chosen")

    @property
    def rejected(self) -> Completions:
        return self.side("rejected")

    def side(self, name: str) -> Completions:
        """The side called `name`. Raises ValueError when no forward computed it."""
        need = name if name in ("chosen", "rejected") else f"side:{name}"
        return _there(self.sides.get(name), f"the side {name!r}", need)

    def value(self, name: str) -> Tensor:
        """The numbers called `name` that the pairs carry, without gradient. Raises ValueError when there are none."""
        return _there(self.values.get(name), f"the value {name!r}", f"value:{name}").detach()

    def recalled(self, name: str) -> Tensor:
        """What the objective remembers under `name`. Raises ValueError when it was given no memory."""
        return _there(self.memory.get(name), f"its memory of {name!r}", "memory").detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """Loss and metrics per pair.

    `loss` (B,) is averaged over the pairs of an optimizer step. `pooled` maps a side to the sum (B,) of a token loss
    over that side's completion tokens, which the trainer divides by the number of those tokens in the whole optimizer
    step; so neither micro-batches nor ranks change a token mean. `metrics` are detached tensors (B,), averaged for the
    log. `seen` are detached tensors with B as their first axis, gathered over the step for `Remembering.remember`.
    """

    loss: Tensor
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    seen: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A pure function from tensors to one loss per pair; its parameters are the fields of a frozen dataclass.

    One that reads scores and states alone may say so by a class variable `scores_only`; no log-probs are computed then.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """The forwards, masks and numbers that it reads."""

    def __call__(self, inputs: LossInputs, /) -> LossOutput: ...


@dataclass(frozen=True, slots=True)
class TokenTerm:
    """Numbers of tokens that follow from whole next-token distributions, so that no distribution has to be kept.

    `function` maps the logits (M, V) of every source, "policy" among them, and the labels (M,) to named numbers (M,).
    It is called with a few tokens at a time, twice: tokens do not mix, and it draws nothing at random. `sources` are
    the names beside "policy" that it reads: other models, or the policy in another context.
    """

    function: Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]
    sources: tuple[str, ...] = ()


@runtime_checkable
class Distributional(Protocol):
    """An objective that reads whole distributions: `token_terms` maps sides to what fills their `Completions.terms`."""

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]: ...


@runtime_checkable
class Scoring(Protocol):
    """An objective whose head has parameters: `head` maps names of the head's arguments to their values.

    What follows from model and pairs (sizes and counts) is not among them.
    """

    @property
    def head(self) -> Mapping[str, float]: ...


@runtime_checkable
class Remembering(Protocol):
    """An objective with a memory over steps; it names "memory" in its needs.

    `start_memory` is the memory before the first step. `remember` gives the next one from what all pairs of a step
    left in `LossOutput.seen`; it is pure, so ranks that gather the same keep the same, and a checkpoint saves it.
    """

    def start_memory(self) -> dict[str, Tensor]: ...

    def remember(self, memory: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def _there(value: T | None, what: str, need: str) -> T:
    if value is None:
        raise ValueError(
            f"the objective reads {what} but does not name {need!r} in its needs, or the trainer gave none"
        )
    return value
