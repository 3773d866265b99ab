"""Any function of whole distributions of completion tokens, a few tokens at a time.

Chunks are computed once more in the backward pass. This serves whatever `streamed` has no gradient by hand for: token
terms of objectives, output layers that are more than a matrix, and logits that are all there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.objectives import TokenTerm
from mmalign.objectives.distributions import Logits, stream, token_kl, token_logps
from mmalign.train.data.collate import PairBatch
from mmalign.train.logprobs.head import Anchor, product_type, tokens_at_once

#: Rows of the vocabulary that a term may hold for each token of each of its sources.
MATRICES = 4
_LOGPS = TokenTerm(lambda logits, labels: {"logps": token_logps(logits["policy"], labels)})
_KL = TokenTerm(lambda logits, labels: {"kl": token_kl(logits["reference"], logits["policy"])}, ("reference",))


@dataclass(frozen=True, slots=True)
class Chunks:
    """The M completion tokens of a batch: `logits` makes (C, V) of some of `own` (M, ...)."""

    own: Tensor
    logits: Callable[[Tensor], Tensor]
    vocabulary: int
    batch: PairBatch

    def logps(self) -> Tensor:
        """Log-probs (N, T) of all completion tokens."""
        return self._term(_LOGPS, slice(None), slice(None), {})["logps"]

    def divergence(self, anchor: Anchor) -> Tensor:
        """KL(reference || policy) (B, T) of the first side's tokens."""
        side = self.batch.sides[0]
        return self._term(_KL, tokens_of(self.batch, side), self.batch.rows_of(side), {"reference": anchor})["kl"]

    def terms(self, terms: Mapping[str, TokenTerm], anchors: Mapping[str, Anchor]) -> dict[str, dict[str, Tensor]]:
        """What `terms` give, (rows of the side, T), by side and name.

        A source of a term that is none of the `anchors` is another side, or "policy". An anchor covers the tokens of
        all sides whose term names it, one side after the other. Raises ValueError when another side has other tokens.
        """
        found, used = {}, dict.fromkeys(anchors, 0)
        for side in (side for side in self.batch.sides if side in terms):
            tokens, others = tokens_of(self.batch, side), dict[str, Anchor | slice]()
            count = tokens.stop - tokens.start
            for name in dict.fromkeys(terms[side].sources):
                if name in anchors:
                    begin, used[name] = used[name], used[name] + count
                    others[name] = Anchor(anchors[name].inputs[begin : used[name]], anchors[name].head)
                elif name != "policy":
                    others[name] = self._same(tokens, name)
            found[side] = self._term(terms[side], tokens, self.batch.rows_of(side), others)
        return found

    def _same(self, tokens: slice, side: str) -> slice:
        """The tokens of another side."""
        found, labels = tokens_of(self.batch, side), self.batch.places.labels
        if not torch.equal(labels[found], labels[tokens]):
            raise ValueError(f"the side {side!r} is read token for token beside one that has other tokens")
        return found

    def _term(
        self, term: TokenTerm, tokens: slice, rows: slice, others: Mapping[str, Anchor | slice]
    ) -> dict[str, Tensor]:
        sources = {"policy": _Source(self.own[tokens], self.logits)}
        for name, other in others.items():
            if isinstance(other, Anchor):
                logits = other.head.many(product_type(other.head, other.states.device))
                sources[name] = _Source(other.inputs, torch.no_grad()(logits))
            else:
                sources[name] = _Source(self.own[other], self.logits)

        def chunk(piece: slice) -> Logits:
            return {name: source.logits(source.own[piece]) for name, source in sources.items()}

        size = tokens_at_once(self.vocabulary, MATRICES * len(sources))
        return stream(term, chunk, self.batch.places.labels[tokens], self.batch.mask[rows], size)


@dataclass(frozen=True, slots=True)
class _Source:
    own: Tensor
    logits: Callable[[Tensor], Tensor]


def tokens_of(batch: PairBatch, side: str) -> slice:
    """Which of a batch's M tokens are a side's."""
    rows = batch.rows_of(side)
    return slice(int(batch.mask[: rows.start].sum()), int(batch.mask[: rows.stop].sum()))
