"""Whether a model gives the same numbers when prompts are computed once for all answers to them.

It is tried before a run, on one batch of every kind of media; one that does not (recurrent or linear attention, a
kernel without masks, anything unforeseen) is trained with a row for every answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from mmalign.errors import ModelError
from mmalign.pairs import PairRow
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.logps import completion_logps

log = logging.getLogger("mmalign.train")

#: What a forward raises that is given a mask or positions it cannot take.
_REFUSALS = (ModelError, TypeError, ValueError, AttributeError, LookupError, RuntimeError, NotImplementedError)
#: What rounding explains: in float32 the largest difference beside the largest log-prob, in types that are less exact
#: the root mean square of one beside that of the other. Answers that see each other differ by more.
TOLERANCE, COARSE = 1e-4, 0.05


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
        # What a sharp eye can see in float32 would hide behind the rounding of autocast.
        with nullcontext() if _is_exact(model) else autocast():
            reason = _difference(model, collate(first).to(device), shared(first).to(device))
        if reason is not None:
            log.warning("each answer is computed with a prompt of its own (train.shared_prefix is off): %s", reason)
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


def _difference(model: Any, plain: PairBatch, shared: PairBatch) -> str | None:
    """What is wrong with the shared forward, if anything."""
    expected = completion_logps(model, plain)
    try:
        found = completion_logps(model, shared)
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    off, scale = (found - expected)[plain.mask].abs(), expected[plain.mask].abs()
    if off.max() <= TOLERANCE * scale.max():
        return None
    if not _is_exact(model) and off.square().mean() <= COARSE**2 * scale.square().mean():
        return None
    return f"with the prompt shared, log-probs of pair {', '.join(plain.ids)} are off by up to {off.max():.2g}"


def _is_exact(model: Any) -> bool:
    return all(weight.dtype == torch.float32 for weight in model.parameters())
