"""Before the first step: what the model can share is tried, all pairs are measured, and the reference scores them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mmalign.train.cache.encoded import ContextEncoder
from mmalign.train.cache.keys import short_key, weights_key
from mmalign.train.cache.reference import FirstPass, Measured
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.interrupt import Stop
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.optimizer import autocast
from mmalign.train.run import Run
from mmalign.train.sharing import Trial, see_once_where_equal, share_where_equal
from mmalign.train.sources import Source

#: Pairs of each kind of media that the model is tried on; with two of them rows are padded.
NUM_TRIED = 2


@dataclass(frozen=True)
class Preparation:
    """Makes a run ready; `stop` is asked between parts of the first pass."""

    run: Run
    stop: Stop

    def collator(self, plain: Collator) -> Collator:
        """`plain`, with media seen once and prompts shared as far as the model gives the same numbers."""
        run, config = self.run, self.run.config
        trial = Trial(
            model=run.model,
            rows=run.rows,
            kinds=run.kinds,
            size=min(NUM_TRIED, config.micro_batch_size),
            max_length=config.max_length,
            autocast=partial(autocast, run.ranks.device, config),
            device=run.ranks.device,
            explained=partial(run.batch_named, "the check before training"),
        )
        collate = plain
        if (encoder := self._encoder(plain)) is not None:
            collate = see_once_where_equal(collate, encoder, trial)
        # An answer that is there twice is to be computed twice, under dropout of its own.
        if config.shared_prefix == "auto" and not any(side.endswith("_view") for side in run.sides):
            for model in (run.model, *(source.model for source in run.forward.sources.models.values())):
                collate = share_where_equal(replace(collate, shares=False), replace(trial, model=model))
                if not collate.shares:
                    break
        return collate

    def measure(self, collate: Collator, known: Measured | None) -> Measured:
        """The first pass over all pairs, unless their lengths are `known` and nothing else is wanted of it."""
        run, config = self.run, self.run.config
        first_pass = FirstPass(
            folder=(config.reference_cache or run.output / "reference").expanduser(),
            key=run.pass_key,
            collate=collate,
            score=self._score if run.forward.scores_reference else None,
            batch_size=config.micro_batch_size,
            max_length=config.max_length,
            rank=run.ranks.index,
            world=run.ranks.count,
            lockstep=run.ranks.shares_weights,
            stop=self.stop,
        )
        measured = known
        if measured is None or run.forward.scores_reference:
            measured = self._pass(first_pass, "reference" if run.forward.scores_reference else "measuring")
        run.forward.tokens.measure(partial(self._rewarded, first_pass))
        return measured

    def _encoder(self, collate: Collator) -> ContextEncoder | None:
        """What sees media once. Not where forwards take all ranks, which would have to miss the same features."""
        run = self.run
        if run.ranks.shares_weights or run.forward.sources.models:  # which see media with towers of their own
            return None
        return ContextEncoder.of(
            run.model, collate.renderer, run.config, processor=run.processor_key, limits=collate.limits
        )

    def _score(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        with self.run.batch_named("the reference pass", batch):
            return self.run.forward.reference(self.run.model, batch.to(self.run.ranks.device))

    def _pass(self, first_pass: FirstPass, what: str) -> Measured:
        with self.run.line(what, len(self.run.rows)) as line:
            return first_pass.run(self.run.rows, line.advance)

    def _rewarded(self, first_pass: FirstPass, name: str) -> Measured:
        """Log-probs under another model, which is gone from memory after this."""
        run = self.run
        model = Source.load(name, run.config, run.loaded).model.to(run.ranks.device)

        @torch.no_grad()
        def score(batch: PairBatch) -> tuple[Tensor, None]:
            with run.batch_named(f"the pass of {name}", batch), autocast(run.ranks.device, run.config):
                return completion_logps(model, batch.to(run.ranks.device)), None

        key = short_key([run.pass_key, weights_key(model)])
        plain = replace(first_pass.collate, shares=False, encoder=None)
        return self._pass(replace(first_pass, key=key, collate=plain, score=score, lockstep=False), name)
