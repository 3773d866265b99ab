"""What one forward says of completions: log-probabilities, numbers of whole distributions, and hidden states.

No logits of whole rows are made. During the forward the model's output layer hands its hidden states over; those that
predict completion tokens are turned into numbers a few tokens at a time, and what the model takes for its logits is a
stand-in that keeps these numbers connected to its output, as the wrappers of distributed training expect. A model whose
logits are not what its output layer gives, scaled and capped (`Head`), is found out at its first forward; its own
logits are then kept. Whether a batch has its prompts once for all answers to them or once for each changes nothing but
time and memory.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmalign.errors import TrainError
from mmalign.lm.prefix import arguments
from mmalign.objectives import TokenTerm
from mmalign.train.data.collate import PairBatch
from mmalign.train.logprobs.chunks import Chunks, tokens_of
from mmalign.train.logprobs.head import Anchor, Head, exact, product_type, unwrapped
from mmalign.train.logprobs.standin import UnknownUseError, instead_of_logits
from mmalign.train.logprobs.streamed import tangents, token_terms

__all__ = [
    "Anchor",
    "Read",
    "Wanted",
    "completion_logps",
    "completion_states",
    "completion_terms",
    "read",
]

log = logging.getLogger("mmalign.train")

#: Whether a model's logits are what its `Head` makes of its hidden states, as far as models have been tried.
_FOLLOWS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be read off a forward.

    `logps`: log-probs of all completion tokens. `anchor`: KL from its distributions before every token of the first
    side. `terms`: an objective's token terms, by side. Their sources are "policy", which is this forward, another side
    of the batch that has the same tokens, with gradient, or one of `sources`, which do not learn and cover the tokens
    of all sides whose term names them, in the order of the batch. `states`: the hidden states at each answer's last
    token. `inputs`: the head's inputs for all tokens of these sides, of which an `Anchor` is made. `tangents`: with
    them, for the first side, what makes a divergence from it cheap, where the model allows it.
    """

    logps: bool = True
    anchor: Anchor | None = None
    terms: Mapping[str, TokenTerm] = field(default_factory=dict)
    sources: Mapping[str, Anchor] = field(default_factory=dict)
    states: bool = False
    inputs: tuple[str, ...] = ()
    tangents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What was read, None or empty where it was not wanted; N, T and sides as in the batch.

    `logps` (N, T) and `divergence` (rows of the first side, T) are float32 (float64 where the model is) in nats, 0 on
    padding. `terms` (rows of the side, T) by side and name. `states` (N, H), 0 for places without an answer, and
    `inputs` (tokens of the side, H) are as the head would read them.
    """

    logps: Tensor | None
    divergence: Tensor | None
    terms: Mapping[str, Mapping[str, Tensor]]
    states: Tensor | None
    inputs: Mapping[str, Tensor]


def read(model: nn.Module, batch: PairBatch, wanted: Wanted) -> Read:
    """One forward of `model`, which may be wrapped, with gradient to its weights.

    Raises TrainError where distributions or states are asked of a model whose head or logits are not as expected.
    """
    inner = unwrapped(model)
    if (values := _streamed(model, batch, wanted) if _FOLLOWS.get(inner, True) else None) is None:
        values = _kept(model, batch, wanted)
        if _FOLLOWS.get(inner, True):
            log.warning("train: this model makes its logits in a way of its own, so all of them are kept in memory")
            _FOLLOWS[inner] = False
    terms: dict[str, dict[str, Tensor]] = {side: {} for side in wanted.terms}
    for kind, side, name in values:
        if kind == "terms":
            terms[side][name] = values[kind, side, name]
    return Read(
        logps=values.get(LOGPS),
        divergence=values.get(DIVERGENCE),
        terms=terms,
        states=values.get(STATES),
        inputs={side: values["inputs", side, ""] for side in wanted.inputs},
    )


def completion_logps(model: nn.Module, batch: PairBatch) -> Tensor:
    """Log-probability of every completion token, (N, T) float32 in nats, 0 on padding.

    The order of N is that of `batch.mask`; columns are the completion tokens in order.
    """
    found = read(model, batch, Wanted()).logps
    assert found is not None
    return found


def completion_terms(model: nn.Module, batch: PairBatch, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """`completion_logps`, and KL(reference || policy) before every completion token of the first side.

    The divergence (B, T) is float32 in nats, exact over the vocabulary, 0 on padding, with gradient to the policy.
    """
    found = read(model, batch, Wanted(anchor=anchor))
    assert found.logps is not None
    assert found.divergence is not None
    return found.logps, found.divergence


@torch.no_grad()
def completion_states(model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """`completion_logps`, and the states that an `Anchor` of this model and the batch's first side holds.

    Raises TrainError when the model's logits do not follow from these states.
    """
    found = read(model, batch, Wanted(inputs=batch.sides[:1], tangents=True))
    assert found.logps is not None
    return found.logps, found.inputs[batch.sides[0]]


# The forward ---------------------------------------------------------------------------------------------------------

#: What was read: its kind, and the side and the name where it has them.
Key = tuple[str, str, str]
LOGPS, DIVERGENCE, STATES = ("logps", "", ""), ("divergence", "", ""), ("states", "", "")


def _streamed(model: nn.Module, batch: PairBatch, wanted: Wanted) -> dict[Key, Tensor] | None:
    """What is wanted, from the states that the head is given; None where the model's logits do not follow from them.

    That is tried at a model's first forward, on the first completion token.
    """
    inner, places = unwrapped(model), batch.places
    try:
        head = Head.of(inner)
    except TrainError:
        return None
    reads_logits = bool(wanted.logps or wanted.terms or wanted.inputs)
    if reads_logits and "forward" in vars(head.linear):
        return None  # what was set on the layer itself is not what its class does
    is_tried = inner in _FOLLOWS or not reads_logits
    tried: list[Tensor] = []

    def compute(hidden: Tensor) -> tuple[dict[Key, Tensor], Tensor]:
        if hidden.shape[:2] != batch.inputs["input_ids"].shape:
            raise UnknownUseError
        if is_tried:
            return _from_states(head, hidden, batch, wanted), hidden.new_zeros(1, 1, 1)
        with torch.no_grad():
            tried.append(head.raw(hidden[places.rows[:1], places.columns[:1]]))
        return _from_states(head, hidden, batch, wanted), tried[0][None]

    try:
        values, output = instead_of_logits(model, head.linear, _arguments(inner, batch), compute)
    except UnknownUseError:
        return None
    if not is_tried:
        if not head.gives(tried[0], output.detach()[0]):
            return None
        _FOLLOWS[inner] = True
    return values


def _kept(model: nn.Module, batch: PairBatch, wanted: Wanted) -> dict[Key, Tensor]:
    """What is wanted, from the model's own logits between the first and the last position that predicts a token."""
    if wanted.anchor is not None or wanted.sources or wanted.inputs:
        raise TrainError(
            "this model does more to its logits than mmalign knows, so the divergence from the reference cannot be "
            "computed: take an objective without it (dpo), or set objective.alpha to 0"
        )
    values: dict[Key, Tensor] = {}
    if wanted.states:
        if (found := _streamed(model, batch, Wanted(logps=False, states=True))) is None:
            raise TrainError(
                "this model does not hand its hidden states to an output layer, so no other head can be set on it"
            )
        values |= found
        if not (wanted.logps or wanted.terms):
            return values
    inner, places = unwrapped(model), batch.places
    start, stop = int(places.columns.min()), int(places.columns.max()) + 1
    keep: dict[str, Any] = {}
    if _keeps_logits(type(inner).forward):
        keep["logits_to_keep"] = torch.arange(start, stop, device=places.columns.device)
    logits: Tensor = model(**_arguments(inner, batch), **keep).logits
    own = logits[places.rows, places.columns - (start if keep else 0)]
    chunks = Chunks(own, exact, own.shape[-1], batch)
    if wanted.logps:
        values[LOGPS] = chunks.logps()
    return values | _terms(chunks, wanted)


def _arguments(inner: nn.Module, batch: PairBatch) -> dict[str, Any]:
    given = batch.inputs if batch.branches is None else arguments(inner, batch.inputs, batch.branches)
    features = {} if batch.features is None else batch.features.arguments()
    return {**given, **features, "use_cache": False}


@cache
def _keeps_logits(forward: Any) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


# What is made of it --------------------------------------------------------------------------------------------------


def _from_states(head: Head, hidden: Tensor, batch: PairBatch, wanted: Wanted) -> dict[Key, Tensor]:
    """What is wanted, from the hidden states (rows, L, H) of all tokens."""
    places, anchor = batch.places, wanted.anchor
    values: dict[Key, Tensor] = {}
    if wanted.states:
        values[STATES] = _last_states(hidden, batch)
    if not (wanted.logps or wanted.terms or wanted.inputs):
        return values
    states = hidden[places.rows, places.columns]
    for side in wanted.inputs:
        values["inputs", side, ""] = states[tokens_of(batch, side)]

    def chunks() -> Chunks:
        return Chunks(states, head.many(product_type(head, hidden.device)), head.vocabulary, batch)

    if wanted.tangents and head.is_concave:
        border = tokens_of(batch, batch.sides[0]).stop
        found = tangents(head, states[:border], places.labels[:border])
        values["inputs", batch.sides[0], ""] = found
        others, _ = token_terms(head, states[border:], places.labels[border:], None)
        values[LOGPS] = _laid_out(torch.cat([found[:, -1], others]), batch.mask)
    elif wanted.logps and head.is_plain and (anchor is None or anchor.head.is_plain):
        logps, divergence = token_terms(head, states, places.labels, anchor)
        values[LOGPS] = _laid_out(logps, batch.mask)
        if anchor is not None:
            values[DIVERGENCE] = _laid_out(divergence, batch.mask[batch.rows_of(batch.sides[0])])
    elif wanted.logps:
        values[LOGPS] = chunks().logps()
        if anchor is not None:
            values[DIVERGENCE] = chunks().divergence(anchor)
    return values | _terms(chunks(), wanted) if wanted.terms else values


def _terms(chunks: Chunks, wanted: Wanted) -> dict[Key, Tensor]:
    found = chunks.terms(wanted.terms, wanted.sources)
    return {("terms", side, name): value for side, named in found.items() for name, value in named.items()}


def _last_states(hidden: Tensor, batch: PairBatch) -> Tensor:
    """The states (N, H) at each answer's last token, 0 for places without an answer."""
    if batch.branches is None:
        ends = batch.mask.sum(-1).cumsum(0)[batch.mask.any(-1)] - 1
        rows, columns = batch.places.rows[ends], batch.places.columns[ends] + 1
    else:
        assert batch.last is not None, "the collator was not told that states are read"
        rows, columns = batch.last.rows, batch.last.columns
    found = hidden.new_zeros(len(batch.mask), hidden.shape[-1])
    return found.index_put((batch.mask.any(-1).nonzero().squeeze(-1),), hidden[rows, columns])


def _laid_out(values: Tensor, mask: Tensor) -> Tensor:
    """Values of tokens, row by row, as (rows, T) with 0 off the mask."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
