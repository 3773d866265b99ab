"""The first pass over all pairs: opens all media, measures every pair, and keeps the reference's log-probs on disk.

For objectives that need whole distributions of the reference it also keeps the hidden states that its head makes them
of, which are small: tokens x hidden size of the chosen answers.

It runs once, before training, with the weights that training starts from. So wrong media are found before hours of
work, no second model is held in memory, and no reference forward is paid twice; TRL does not offer this for pictures.
Parts appear whole or not at all, so an interrupted pass goes on where it was. A training in stages has a pass without
a reference over the pairs of all stages first, for a stage's reference is known only when the stage begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.pairs import PairRow
from mmalign.train.atomic import replacing
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.modality import modality

#: Pairs per file, and so the most work that an interruption can lose.
PART_SIZE = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass knows of R pairs with S sides.

    `lengths` (R, S): tokens of prompt, media and answer. `counts` (R, S): tokens of the answer. `logps`: the
    reference's log-probs of each answer, R tuples of S tensors, absent without a reference. `parts`: the files with the
    states of the first answers, which stay on disk.
    """

    lengths: Tensor
    counts: Tensor
    logps: list[tuple[Tensor, ...]] | None
    parts: Sequence[Path] = ()

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
        found = []
        for index in indices:
            number, place = divmod(index, PART_SIZE)
            with safe_open(_states_of(self.parts[number]), framework="pt") as file:
                found.append(file.get_tensor(str(place)))
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class FirstPass:
    """Measures pairs, and scores them with `score` where it is given, into `folder`.

    `key` names everything that the numbers depend on; passes with different keys do not meet. `score` takes a batch to
    log-probs (N, T) and, where they are to be kept, states (M, H) of the first side's tokens. With several ranks each
    makes its share of the parts; all must call `run`.
    """

    folder: Path
    key: str
    collate: Collator
    score: Callable[[PairBatch], tuple[Tensor, Tensor | None]] | None
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
                found, states = self._measure(part)
                if states:
                    with replacing(_states_of(path)) as partial:
                        save_file(states, partial)
                with replacing(path) as partial:
                    save_file(found, partial)
            progress(len(part))
        self.wait()
        return _joined(paths, with_logps=self.score is not None)

    def _measure(self, rows: Sequence[PairRow]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Numbers of a part's pairs in their order, and the states of those that were scored, by place."""
        lengths: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}
        logps: dict[int, Tensor] = {}
        states: dict[str, Tensor] = {}
        kinds = [modality(row, self.collate.renderer) for row in rows]
        # A batch holds media of one kind; which pairs share one changes nothing.
        places = sorted(range(len(rows)), key=lambda place: (kinds[place], place))
        for _, group in groupby(places, key=kinds.__getitem__):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                own = alike[start : start + self.batch_size]
                batch = self.collate([rows[place] for place in own])
                for column, place in enumerate(own):
                    lengths[place] = batch.lengths[:, column]
                    counts[place] = batch.mask.sum(-1).view(len(batch.sides), -1)[:, column]
                if self.score is not None:
                    found, kept = self._score(rows, own, batch)
                    logps |= found
                    states |= {str(place): value for place, value in kept.items()}
        order = range(len(rows))
        measured = {
            "lengths": torch.stack([lengths[i] for i in order]),
            "counts": torch.stack([counts[i] for i in order]),
        }
        if self.score is not None:
            measured["logps"] = torch.cat([logps[place] for place in order])
        return measured, states

    def _score(
        self, rows: Sequence[PairRow], own: Sequence[int], batch: PairBatch
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Log-probs of every pair of a batch, its sides one after the other, and states of its first side.

        The batch holds the pairs `own` of `rows`. Those over the limit count as zeros and have no states.
        """
        assert self.score is not None
        lengths, counts = batch.lengths.amax(0).tolist(), batch.mask.sum(-1).view(len(batch.sides), -1).sum(0).tolist()
        kept = [
            place
            for place, length in zip(own, lengths, strict=True)
            if self.max_length is None or length <= self.max_length
        ]
        logps = {place: torch.zeros(count) for place, count in zip(own, counts, strict=True)}
        if not kept:
            return logps, {}
        if len(kept) < len(own):
            batch = self.collate([rows[place] for place in kept])
        values, hidden = self.score(batch)
        values, mask = values.float().cpu(), batch.mask.cpu()
        for column, place in enumerate(kept):
            scored = range(column, len(values), len(kept))
            logps[place] = torch.cat([values[row][mask[row]] for row in scored])
            if not logps[place].isfinite().all():
                raise TrainError(f"pair {rows[place].id}: the reference gives it a log-probability that is not finite")
        if hidden is None:
            return logps, {}
        parts = torch.split(hidden.cpu(), mask[: len(kept)].sum(-1).tolist())
        return logps, {place: part.contiguous().clone() for place, part in zip(kept, parts, strict=True)}


def _states_of(part: Path) -> Path:
    """The file with the states beside a part."""
    return part.with_name(f"states-{part.name}")


def _joined(paths: Sequence[Path], *, with_logps: bool) -> Measured:
    parts = [load_file(path) for path in paths]
    lengths = torch.cat([part["lengths"] for part in parts])
    counts = torch.cat([part["counts"] for part in parts])
    if not with_logps:
        return Measured(lengths, counts, None)
    flat = torch.split(torch.cat([part["logps"] for part in parts]), counts.flatten().tolist())
    sides = counts.shape[1]
    logps = [flat[row * sides : (row + 1) * sides] for row in range(len(counts))]
    return Measured(lengths, counts, logps, parts=paths)


def adapter_off(model: Any) -> Any:
    """A context in which a model with adapters is the model without them; nothing changes for a model without."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
