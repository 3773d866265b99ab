"""The first pass over all pairs: opens every picture, measures every pair, and keeps the reference's log-probs on disk.

It runs once, before training, with the weights that training starts from. So wrong media are found before hours of
work, no second model is held in memory, and no reference forward is paid twice; TRL does not offer this for pictures.
Parts appear whole or not at all, so an interrupted pass goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.pairs import PairRow
from mmalign.train.atomic import replacing
from mmalign.train.collate import Collator, PairBatch

#: Pairs per file, and so the most work that an interruption can lose.
PART_SIZE = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass knows of R pairs with S sides.

    `lengths` (R, S): tokens of prompt, media and answer. `counts` (R, S): tokens of the answer. `logps`: the
    reference's log-probs of each answer, R tuples of S tensors, absent without a reference.
    """

    lengths: Tensor
    counts: Tensor
    logps: list[tuple[Tensor, ...]] | None

    def reference(self, indices: Sequence[int], mask: Tensor) -> Tensor:
        """Reference log-probs (N, T) of the pairs `indices`, laid out like a batch's `mask` (N, T)."""
        assert self.logps is not None
        flat = torch.cat([self.logps[index][side] for side in range(self.counts.shape[1]) for index in indices])
        values = torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device)
        return values.masked_scatter(mask, flat.to(mask.device))


@dataclass(frozen=True, kw_only=True)
class FirstPass:
    """Measures pairs, and scores them with `score` where it is given, into `folder`.

    `key` names everything that the numbers depend on; passes with different keys do not meet. `score` takes a batch to
    log-probs (N, T). With several ranks each makes its share of the parts; all must call `run`.
    """

    folder: Path
    key: str
    collate: Collator
    score: Callable[[PairBatch], Tensor] | None
    batch_size: int
    max_length: int | None
    rank: int = 0
    world: int = 1
    wait: Callable[[], Any] = lambda: None

    def run(self, rows: Sequence[PairRow], progress: Callable[[int], Any]) -> Measured:
        """Make the parts that are missing and read all; `progress` is told how many pairs each part held."""
        home = self.folder / self.key
        home.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(rows), PART_SIZE)
        paths = [home / f"part-{number:05d}.safetensors" for number in range(len(starts))]
        for number, (start, path) in enumerate(zip(starts, paths, strict=True)):
            part = rows[start : start + PART_SIZE]
            if number % self.world == self.rank and not path.exists():
                with replacing(path) as partial:
                    save_file(self._measure(part), partial)
            progress(len(part))
        self.wait()
        return _joined([load_file(path) for path in paths], with_logps=self.score is not None)

    def _measure(self, rows: Sequence[PairRow]) -> dict[str, Tensor]:
        lengths, counts, logps = [], [], []
        for start in range(0, len(rows), self.batch_size):
            batch = self.collate(rows[start : start + self.batch_size])
            sides = len(batch.sides)
            lengths.append(batch.lengths.T)
            counts.append(batch.mask.sum(-1).view(sides, -1).T)
            if self.score is not None:
                logps.extend(self._score(rows[start : start + self.batch_size], batch))
        found = {"lengths": torch.cat(lengths).contiguous(), "counts": torch.cat(counts).contiguous()}
        if self.score is not None:
            found["logps"] = torch.cat(logps)
        return found

    def _score(self, rows: Sequence[PairRow], batch: PairBatch) -> list[Tensor]:
        """Log-probs of every pair of a batch, its sides one after the other. Pairs over the limit count as zeros."""
        assert self.score is not None
        lengths, counts = batch.lengths.amax(0), batch.mask.sum(-1).view(len(batch.sides), -1)
        fits = [self.max_length is None or int(length) <= self.max_length for length in lengths]
        kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
        if kept and len(kept) < len(rows):
            batch = self.collate(kept)
        values = self.score(batch).float().cpu() if kept else torch.zeros(0, 0)
        mask = batch.mask.cpu()
        scored, position = [], 0
        for index, fit in enumerate(fits):
            if not fit:
                scored.append(torch.zeros(int(counts[:, index].sum())))
                continue
            own = range(position, len(values), len(kept))
            scored.append(torch.cat([values[row][mask[row]] for row in own]))
            position += 1
        for row, value in zip(rows, scored, strict=True):
            if not value.isfinite().all():
                raise TrainError(f"pair {row.id}: the reference gives it a log-probability that is not finite")
        return scored


def _joined(parts: Sequence[dict[str, Tensor]], *, with_logps: bool) -> Measured:
    lengths = torch.cat([part["lengths"] for part in parts])
    counts = torch.cat([part["counts"] for part in parts])
    if not with_logps:
        return Measured(lengths, counts, None)
    flat = torch.split(torch.cat([part["logps"] for part in parts]), counts.flatten().tolist())
    sides = counts.shape[1]
    return Measured(lengths, counts, [flat[row * sides : (row + 1) * sides] for row in range(len(counts))])


def adapter_off(model: Any) -> Any:
    """A context in which a model with adapters is the model without them; nothing changes for a model without."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


def weights_key(model: Any) -> str:
    """A short name for a model's weights: shapes, types and up to 1,024 evenly spaced values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        values = flat[:: max(1, flat.numel() // 1024)].double().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def rows_key(rows: Sequence[PairRow], *, labels: bool) -> str:
    """A short name for pairs: contexts and texts in order, with `labels` also what weighs and marks them."""
    digest = hashlib.sha256()
    for row in rows:
        values: list[Any] = [row.context, row.rejected_context, row.chosen, row.rejected]
        if labels:
            values += [row.id, row.p, row.weight, row.chosen_spans, row.rejected_spans]
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]
