"""Whether a model gives the same numbers when prompts are computed once for all answers to them.

It is tried before a run, on one batch of every kind of media; one that does not (recurrent or linear attention, a
kernel without masks, anything unforeseen) is trained with a row for every answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.lm.prefix import compare, is_exact
from mmalign.pairs import PairRow
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.logps import completion_logps

log = logging.getLogger("mmalign.train")


@torch.no_grad()
def share_where_equal(
    model: Any,
    collate: Collator,
    rows: Sequence[PairRow],
    kinds: Sequence[str],
    *,
    size: int,
    max_length: int | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> Collator:
    """`collate`, with prompts shared where that gives the plain log-probs; where not, one line says why.

    Of every kind of media the first `size` pairs that are not over `max_length` are tried, under `autocast` only where
    weights are not float32.
    """
    if len(collate.sides) < 2:
        return collate
    shared = replace(collate, shares=True)
    model.eval()
    for kind in dict.fromkeys(map(_family, kinds)):
        own = [row for row, other in zip(rows, kinds, strict=True) if _family(other) == kind]
        if not (first := _short(collate, own, size, max_length)):
            continue
        batch, other = collate(first).to(device), shared(first).to(device)
        exact = is_exact(model)
        # What can be told apart in float32 would hide behind the rounding of autocast.
        with nullcontext() if exact else autocast():
            expected = completion_logps(model, batch)[batch.mask]
            found = partial(_found, model, other)
            values, reason = compare(found, expected, is_exact=exact)
        if values is None:
            named = ", ".join(batch.ids)
            log.warning("train.shared_prefix: each answer gets a prompt of its own, tried on %s: %s", named, reason)
            return collate
    return shared


def _family(kind: str) -> str:
    """A kind of media without its number of frames."""
    return "".join(letter for letter in kind if not letter.isdigit()).strip()


def _short(collate: Collator, rows: Sequence[PairRow], size: int, max_length: int | None) -> list[PairRow]:
    """The first `size` pairs that are not too long; fewer where there are no more."""
    found: list[PairRow] = []
    for row in rows:
        if len(found) == size:
            break
        if max_length is None or int(collate([row]).lengths.max()) <= max_length:
            found.append(row)
    return found


def _found(model: Any, batch: PairBatch) -> Tensor:
    return completion_logps(model, batch)[batch.mask]
