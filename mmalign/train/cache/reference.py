"""The first pass over all pairs: opens their media, measures every pair, and keeps the reference's log-probs on disk.

For objectives that need whole distributions of the reference it also keeps the hidden states that its head makes them
of, which are small: tokens x hidden size of the chosen answers.

It runs once, before training, with the weights that training starts from. So wrong media are found before hours of
work, no second model is held in memory, and no reference forward is paid twice; TRL does not offer this for pictures.
Numbers are found again by row: what is known of a pair stays known when others come, go or change places. A row is
scored in a batch with others, whose padding may change the last bits of float32; numbers that are read are those that
were computed. A training in stages has a pass without a reference over the pairs of all stages first, for a stage's
reference is known only when the stage begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather
from torch import Tensor

from mmalign.errors import Interrupted, TrainError
from mmalign.pairs import PairRow
from mmalign.train.cache.keys import row_key
from mmalign.train.cache.parts import Numbers, Parts, read_states, trim
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.modality import modality
from mmalign.train.interrupt import Stop

#: Pairs per file, and so the most work that a killed pass can lose.
PART_SIZE = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass knows of R pairs with S sides.

    `lengths` (R, S): tokens of prompt, media and answer. `counts` (R, S): tokens of the answer. Where a side is a list,
    they are those of the longest answer, and of all. `logps`: the reference's log-probs of each side, R tuples of S
    tensors, absent without a reference. `kept`: the file of each pair
    and its key there, by which the states of its first answer are read when they are needed.
    """

    lengths: Tensor
    counts: Tensor
    logps: list[tuple[Tensor, ...]] | None
    kept: Sequence[tuple[Path, str]] = ()

    def part(self, indices: Sequence[int], sides: Sequence[int]) -> Measured:
        """The lengths and counts of some pairs and sides."""
        return Measured(self.lengths[indices][:, sides], self.counts[indices][:, sides], None)

    def reference(self, indices: Sequence[int], mask: Tensor) -> Tensor:
        """Reference log-probs (N, T) of the pairs `indices`, laid out like a batch's `mask` (N, T)."""
        assert self.logps is not None
        flat = torch.cat([self.logps[index][side] for side in range(self.counts.shape[1]) for index in indices])
        values = torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device)
        return values.masked_scatter(mask, flat.to(mask.device))

    def states(self, indices: Sequence[int]) -> Tensor:
        """Inputs of the reference's head (M, H) for the first answers' tokens of the pairs `indices`, in their order.

        Only pairs that were scored have them.
        """
        return torch.cat([read_states(*self.kept[index]) for index in indices])


@dataclass(frozen=True, kw_only=True)
class FirstPass:
    """Measures pairs, and scores them with `score` where it is given, into `folder`.

    `key` names everything that the numbers depend on, beside the row: weights, adapter, processor, limits, precision;
    passes with different keys do not meet. `score` takes a batch to log-probs (N, T) and, where they are to be kept,
    states (M, H) of the first side's tokens. With several ranks each makes its share of the rows; all must call `run`.
    In `lockstep` all ranks run as many forwards, of the same kinds in the same order, as models need that are spread
    over ranks.
    """

    folder: Path
    key: str
    collate: Collator
    score: Callable[[PairBatch], tuple[Tensor, Tensor | None]] | None
    batch_size: int
    max_length: int | None
    rank: int = 0
    world: int = 1
    lockstep: bool = False
    stop: Stop = field(default_factory=Stop)

    def run(self, rows: Sequence[PairRow], progress: Callable[[int], Any]) -> Measured:
        """Make what is missing and read all; `progress` is told how many pairs are there, then how many came.

        Raises Interrupted, with all that was made on disk, once `stop` was asked to.
        """
        keys = [row_key(row, self.collate.data_root) for row in rows]
        row_of = dict(zip(keys, rows, strict=True))
        parts = Parts(self.folder / self.key)
        known = parts.read(row_of)
        if self.rank == 0:
            trim(self.folder)
        missing = self._missing(list(row_of), known)
        progress(len(rows) - len(missing))
        kinds = {key: modality(row_of[key], self.collate.renderer) for key in missing}
        for _, alike in groupby(sorted(missing, key=kinds.__getitem__), key=kinds.__getitem__):
            for share in _cut(list(alike), PART_SIZE * self.world):
                if made := dict(self._measured(share, row_of)):
                    parts.write(made)
                progress(len(share))
        if self.stop.agreed():
            raise Interrupted("interrupted; what is done is kept, run the same command again to go on")
        # What was read stays known, should another process make room by removing it.
        known |= parts.read([key for key in row_of if not self._suffices(known.get(key))])
        return self._joined([(key, known[key]) for key in keys])

    def _missing(self, keys: Sequence[str], known: Mapping[str, Numbers]) -> list[str]:
        """Rows to be measured: the same on all ranks, each of which may have seen others come."""
        is_missing = torch.tensor([not self._suffices(known.get(key)) for key in keys], device=PartialState().device)
        return [key for key, wanted in zip(keys, broadcast(is_missing.int()).tolist(), strict=True) if wanted]

    def _suffices(self, row: Numbers | None) -> bool:
        """Whether a row needs no forward: nothing is asked of the reference, or the row is scored or too long."""
        return row is not None and (self.score is None or row.logps is not None or not self._is_short(row.lengths))

    def _is_short(self, lengths: Tensor) -> bool:
        return self.max_length is None or int(lengths.max()) <= self.max_length

    def _measured(self, share: list[str], row_of: Mapping[str, PairRow]) -> Iterator[tuple[str, Numbers]]:
        """This rank's of some rows, all about media of one kind, batch by batch until `stop` is asked to."""
        batches = list(_cut(share, self.batch_size * self.world))
        for keys in (batch[self.rank :: self.world] for batch in batches):
            if self.stop.agreed() if self.lockstep else self.stop.asked:
                return
            rows = {key: row_of[key] for key in keys}
            batch = self.collate(list(rows.values())) if rows else None
            found = {} if batch is None else _sizes(batch, keys)
            short = [key for key, row in found.items() if self._is_short(row.lengths)]
            if self.score is not None and (lead := self._lead(share, short)) is not None:
                if batch is None or len(short) < len(found):
                    batch = self.collate([row_of[key] for key in short or [lead]])
                scored = self._scored(batch, [row_of[key] for key in short or [lead]])
                for key, (logps, states) in zip(short, scored[: len(short)], strict=True):
                    found[key] = replace(found[key], logps=logps, states=states)
            yield from found.items()

    def _lead(self, share: list[str], short: list[str]) -> str | None:
        """The row that ranks without one of their own run a forward with; None when nobody runs one."""
        if not self.lockstep:
            return short[0] if short else None
        place = share.index(short[0]) if short else len(share)
        first = int(gather(torch.tensor([place], device=PartialState().device)).min())
        return share[first] if first < len(share) else None

    def _scored(self, batch: PairBatch, rows: Sequence[PairRow]) -> list[tuple[Tensor, Tensor | None]]:
        """Log-probs and states of the pairs of a batch."""
        assert self.score is not None
        values, hidden = self.score(batch)
        values, mask = values.float().cpu(), batch.mask.cpu()
        sides = [(batch.laid(side, values), batch.laid(side, mask)) for side in batch.sides]
        states = None if hidden is None else torch.split(hidden.cpu(), batch.counts()[0].tolist())
        found: list[tuple[Tensor, Tensor | None]] = []
        for column, row in enumerate(rows):
            logps = torch.cat([of_side[column][own[column]] for of_side, own in sides])
            if not logps.isfinite().all():
                raise TrainError(f"pair {row.id}: the reference gives it a log-probability that is not finite")
            found.append((logps, None if states is None else states[column].contiguous().clone()))
        return found

    def _joined(self, found: Sequence[tuple[str, Numbers]]) -> Measured:
        lengths = torch.stack([row.lengths for _, row in found])
        counts = torch.stack([row.counts for _, row in found])
        if self.score is None:
            return Measured(lengths, counts, None)
        logps = [
            # Pairs that are too long are never trained on.
            torch.split(torch.zeros(sum(sizes)) if row.logps is None else row.logps, sizes)
            for (_, row), sizes in zip(found, counts.tolist(), strict=True)
        ]
        return Measured(lengths, counts, logps, [(row.part, key) for key, row in found if row.part is not None])


def _sizes(batch: PairBatch, keys: Sequence[str]) -> dict[str, Numbers]:
    """What is known of a batch's pairs without a model."""
    return {key: Numbers(*both) for key, *both in zip(keys, batch.lengths.T, batch.counts().T, strict=True)}


def _cut(keys: list[str], size: int) -> Iterator[list[str]]:
    """Slices of at most `size`, in order."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def adapter_off(model: Any) -> Any:
    """A context in which a model with adapters is the model without them; nothing changes for a model without."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
