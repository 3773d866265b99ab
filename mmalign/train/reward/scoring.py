"""Scores of answers by a reward model that was trained here.

loaded = load_model(ModelSpec(name="base", adapter="runs/reward/adapter"))
scores = score_rows(loaded, "runs/reward/adapter", rows, data_root)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator
from mmalign.train.data.modality import modality
from mmalign.train.logprobs.logps import Wanted, read
from mmalign.train.reward.heads import load_head, prompts_of, scored, with_states
from mmalign.train.step import loss_inputs


@torch.no_grad()
def score_rows(
    loaded: Loaded,
    folder: Path | str,
    rows: Sequence[PairRow],
    data_root: Path,
    *,
    sides: tuple[str, ...] = ("chosen", "rejected"),
    limits: MediaLimits | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Scores (R, S) of one answer per side of every row, or (R, S, A) of a head with A scores, on the CPU.

    `folder` holds the head; `loaded` is the model with the adapter, or the whole model, that lies there. An ideal point
    is that of the rows' value "user". Raises TrainError when there is no head, no row, or lists of answers.
    """
    device = next(loaded.model.parameters()).device
    spec, head = load_head(folder, device)
    values = ("user",) if spec.name == "ideal_point" else ()
    collate = Collator(loaded.renderer, data_root, limits or MediaLimits(), sides, values=values, states=True)
    wanted = Wanted(logps=False, states=True, inputs=sides if spec.name == "gated" else ())
    kinds = [modality(row, loaded.renderer) for row in rows]
    found: dict[int, Tensor] = {}
    loaded.model.eval()
    for _, group in groupby(sorted(range(len(rows)), key=kinds.__getitem__), key=kinds.__getitem__):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            own = alike[start : start + batch_size]
            batch = collate([rows[place] for place in own]).to(device)
            if any(batch.shapes):
                raise TrainError("scores are of one answer per side; give lists of answers as rows of their own")
            given = read(loaded.model, batch, wanted)
            inputs = with_states(loss_inputs(batch, torch.zeros(batch.mask.shape, device=device), None), batch, given)
            told = scored(head, spec.name, inputs, prompts_of(batch, given))
            found |= zip(own, torch.stack([told.side(side).scores for side in sides], 1).cpu(), strict=True)
    if not found:
        raise TrainError("there are no pairs to score")
    return torch.stack([found[place] for place in range(len(rows))])
