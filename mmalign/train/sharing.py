"""Whether a model gives the same numbers when prompts are computed once for all answers to them, and media seen once.

It is tried before a run, on one batch of every kind of media; one that does not (recurrent or linear attention, a
kernel without masks, anything unforeseen) is trained with a row for every answer, or sees media in every forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.lm.prefix import compare, is_exact
from mmalign.lm.processing import TEXT_ONLY
from mmalign.pairs import PairRow
from mmalign.sides import shape_of
from mmalign.train.cache.encoded import ContextEncoder
from mmalign.train.cache.keys import short_key
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.logps import completion_logps

log = logging.getLogger("mmalign.train")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Pairs to try a model on before a run: of every kind of media the first `size` that are not over `max_length`.

    `kinds` are those of `rows`. Weights that are not all float32 are tried under `autocast`. `explained` is the block
    that a batch is computed in.
    """

    model: Any
    rows: Sequence[PairRow]
    kinds: Sequence[str]
    size: int
    max_length: int | None
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    explained: Callable[[PairBatch], AbstractContextManager[Any]] = lambda batch: nullcontext()

    @torch.no_grad()
    def fault(self, kind: str, plain: Collator, other: Collator, how: str) -> str | None:
        """What tells batches of two collators with media of a kind apart by their log-probs; empty if nothing does.

        `how` says what the other does. None where no pair can be tried.
        """
        if not (first := self._short(plain, kind)):
            return None
        self.model.eval()
        batch, exact = plain(first), is_exact(self.model)
        # What can be told apart in float32 would hide behind the rounding of autocast.
        with self.explained(batch), nullcontext() if exact else self.autocast():
            expected = self._logps(batch)
            values, reason = compare(lambda: self._logps(other(first)), expected, is_exact=exact, how=how)
        return f"tried on {', '.join(batch.ids)}: {reason}" if values is None else ""

    @property
    def families(self) -> list[str]:
        """The kinds of media, whatever their numbers of frames."""
        return list(dict.fromkeys(map(_family, self.kinds)))

    def _logps(self, batch: PairBatch) -> Tensor:
        """Log-probs (M,) of all answers' tokens."""
        return completion_logps(self.model, batch.to(self.device))[batch.mask.to(self.device)]

    def _short(self, collate: Collator, kind: str) -> list[PairRow]:
        """The first pairs of a kind that are not too long; fewer than `size` where there are no more."""
        found: list[PairRow] = []
        for row in (row for row, other in zip(self.rows, self.kinds, strict=True) if _family(other) == kind):
            if len(found) == self.size:
                break
            if self.max_length is None or int(collate([row]).lengths.max()) <= self.max_length:
                found.append(row)
        return found


def share_where_equal(collate: Collator, trial: Trial) -> Collator:
    """`collate`, with prompts shared where that gives the plain log-probs; where not, one line says why."""
    if len(collate.sides) < 2 and not any(shape_of([row.side(side) for row in trial.rows]) for side in collate.sides):
        return collate  # one answer to every context
    shared = replace(collate, shares=True)
    for kind in trial.families:
        if fault := trial.fault(kind, collate, shared, "with the prompt shared"):
            log.warning("train.shared_prefix: each answer gets a prompt of its own, %s", fault)
            return collate
    return shared


def see_once_where_equal(collate: Collator, encoder: ContextEncoder, trial: Trial) -> Collator:
    """`collate`, with media seen once where that gives the plain log-probs; where not, one line says why.

    That a tower's features were found equal is kept beside them, so a run that finds all of them asks no tower.
    """
    seeing = replace(collate, encoder=encoder)
    for kind in trial.families:
        known = f"equal-{short_key([encoder.key, kind])}"
        if kind == TEXT_ONLY[0] or encoder.cache.get(known) is not None:
            continue
        if fault := trial.fault(kind, collate, seeing, "with features computed once"):
            log.warning("train.vision_once: every forward computes its features, %s", fault)
            return collate
        if fault is not None:
            encoder.cache.put(known, {"equal": torch.ones(1)})
    return seeing


def _family(kind: str) -> str:
    """A kind of media without its number of frames."""
    return "".join(letter for letter in kind if not letter.isdigit()).strip()
