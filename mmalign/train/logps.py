"""Log-probabilities of completions, and their divergence from the reference, from one forward.

Whether a batch has its prompts once for all answers to them or once for each changes nothing but time and memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmalign.lm.prefix import arguments
from mmalign.train.collate import PairBatch
from mmalign.train.head import Head, head_inputs, unwrapped

#: Completion tokens whose vocabulary row is held in float32 at a time.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Anchor:
    """The reference's next-token distributions for the first side's completion tokens, as what makes them.

    `states` (M, H) are the inputs of the reference's `head` for these tokens, pair after pair.
    """

    states: Tensor
    head: Head


def completion_logps(model: nn.Module, batch: PairBatch) -> Tensor:
    """Log-probability of every completion token, (N, T) float32 in nats, N = sides x pairs, 0 on padding.

    The order of N is that of `batch.mask`; columns are the completion tokens in order. The head runs only between
    the first and the last position that predicts a completion token of any row, and only completion positions are
    ever turned to float32, a chunk at a time.
    """
    places = _places(batch)
    return _laid_out(_TokenTerms.apply(_logits(model, batch, places), places, None)[0], batch.mask)


def completion_terms(model: nn.Module, batch: PairBatch, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """`completion_logps`, and KL(reference || policy) before every completion token of the first side.

    The divergence (B, T) is float32 in nats, exact over the vocabulary, 0 on padding, with gradient to the policy.
    """
    places = _places(batch)
    logps, divergence = _TokenTerms.apply(_logits(model, batch, places), places, anchor)
    return _laid_out(logps, batch.mask), _laid_out(divergence, batch.mask[: len(batch.ids)])


@torch.no_grad()
def completion_states(model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """`completion_logps`, and the states (M, H) that an `Anchor` of this model and batch holds.

    Raises TrainError when the model's logits do not follow from these states.
    """
    places = _places(batch)
    with head_inputs(model) as seen:
        logits = _logits(model, batch, places)
    # The head was given all positions or only those that were kept; the kept ones end where the logits do.
    given = seen[-1] if seen[-1].shape[1] == logits.shape[1] else seen[-1][:, places.start : places.stop]
    first = slice(int(batch.mask[: len(batch.ids)].sum()))
    states = given[places.rows[first], places.columns[first]]
    Head.of(model).check(states[:1], logits[places.rows[:1], places.columns[:1]])
    return _laid_out(_TokenTerms.apply(logits, places, None)[0], batch.mask), states


@dataclass(frozen=True, slots=True)
class _Places:
    """Where completion tokens are predicted: positions `start` to `stop` hold them all; token m of M, answer by answer,
    is `labels[m]` and predicted at `rows[m]`, `start + columns[m]`, which tokens of several answers can share.
    """

    start: int
    stop: int
    rows: Tensor
    columns: Tensor
    labels: Tensor


def _places(batch: PairBatch) -> _Places:
    found = batch.places
    start, stop = int(found.columns.min()), int(found.columns.max()) + 1
    return _Places(start, stop, found.rows, found.columns - start, found.labels)


def _logits(model: nn.Module, batch: PairBatch, places: _Places) -> Tensor:
    """Logits (rows, stop - start, V) of the positions that predict completion tokens."""
    inner = unwrapped(model)
    keep: dict[str, Any] = {}
    if _keeps_logits(type(inner).forward):
        keep["logits_to_keep"] = torch.arange(places.start, places.stop, device=places.columns.device)
    inputs = batch.inputs if batch.branches is None else arguments(inner, batch.inputs, batch.branches)
    logits: Tensor = model(**inputs, use_cache=False, **keep).logits
    return logits if keep else logits[:, places.start : places.stop]


def _laid_out(values: Tensor, mask: Tensor) -> Tensor:
    """Values of tokens, row by row, as (rows, T) with 0 off the mask."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


class _TokenTerms(torch.autograd.Function):
    """Log-probs (M,) of labels and KL(reference || policy) (first side's tokens,) from logits (N, K, V), in float32.

    Only logits and the reference's states are kept for the backward pass, which makes the distributions again, chunk by
    chunk, and writes the one gradient (N, K, V): d logp = onehot - P, d KL = P - R.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: _Places, anchor: Anchor | None) -> tuple[Tensor, Tensor]:
        kind = logits.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        ctx.places, ctx.anchor = places, anchor
        ctx.save_for_backward(logits)
        logps, divergences = [], []
        for chunk, policy in _chunks(logits, places, anchor):
            policy -= policy.logsumexp(-1, keepdim=True)
            logps.append(policy.gather(-1, places.labels[chunk, None]).squeeze(-1))
            if (reference := _reference(anchor, chunk)) is not None:
                # KL = sum R (log R - log P), with R made in place of log R.
                difference = reference - policy
                divergences.append(reference.exp_().mul_(difference).sum(-1))
        return torch.cat(logps), torch.cat(divergences) if divergences else logps[0].new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_divergence: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        places, anchor = ctx.places, ctx.anchor
        grad = torch.zeros_like(logits)
        with torch.autocast(logits.device.type, **ctx.autocast):
            for chunk, policy in _chunks(logits, places, anchor):
                part = torch.softmax(policy, -1)
                weight = -grad_logps[chunk]
                if (reference := _reference(anchor, chunk)) is not None:
                    own = grad_divergence[chunk]
                    part.mul_((weight + own)[:, None])
                    part.sub_(reference.exp_().mul_(own[:, None]))
                else:
                    part.mul_(weight[:, None])
                part.scatter_add_(-1, places.labels[chunk, None], -weight[:, None])
                grad.index_put_((places.rows[chunk], places.columns[chunk]), part.to(grad.dtype), accumulate=True)
        return grad, None, None


def _chunks(logits: Tensor, places: _Places, anchor: Anchor | None) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the M tokens and their logits (C, V), copied to float32; no slice goes past the end of the anchor."""
    count, border = len(places.labels), 0 if anchor is None else len(anchor.states)
    edges = [*range(0, border, CHUNK), *range(border, count, CHUNK), count]
    for start, stop in pairwise(edges):
        chunk = slice(start, stop)
        # Indexing copies, so what is in float32 already is not touched either.
        yield chunk, logits[places.rows[chunk], places.columns[chunk]].float()


def _reference(anchor: Anchor | None, chunk: slice) -> Tensor | None:
    """The reference's log-probs (C, V) over the vocabulary in float32, where the anchor has them."""
    if anchor is None or chunk.start >= len(anchor.states):
        return None
    logits = anchor.head(anchor.states[chunk]).float()
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


@cache
def _keeps_logits(forward: Any) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters
