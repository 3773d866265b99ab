"""ArmoRM's first stage (arXiv 2406.12845): what a gate weighs, fitted before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives.heads import fitted
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import Collator
from mmalign.train.distributed.ranks import Ranks
from mmalign.train.logprobs.logps import Wanted, read
from mmalign.train.optimizer import autocast
from mmalign.train.reward.heads import RewardHead


@torch.no_grad()
def fit_gate(
    head: RewardHead,
    model: Any,
    collate: Collator,
    rows: Sequence[PairRow],
    kinds: Sequence[str],
    config: TrainConfig,
    ranks: Ranks,
) -> None:
    """Fit the attributes of a gated head to the labels of the chosen texts of `rows`, whose media are of these `kinds`.

    Every rank reads all states: where weights lie in parts, a forward takes all ranks.
    """
    model.eval()
    single = replace(collate, sides=("chosen",), values=("attributes",), states=True)
    states: Tensor | None = None
    labels: Tensor | None = None
    places = sorted(range(len(rows)), key=lambda place: (kinds[place], place))
    for _, group in groupby(places, key=kinds.__getitem__):
        alike = list(group)
        for start in range(0, len(alike), config.micro_batch_size):
            own = alike[start : start + config.micro_batch_size]
            batch = single([rows[place] for place in own]).to(ranks.device)
            with autocast(ranks.device, config):
                found = read(model, batch, Wanted(logps=False, states=True)).states
            assert found is not None
            given = batch.values["attributes"].view(len(own), -1)
            if states is None or labels is None:
                states = found.new_zeros(len(rows), found.shape[-1], dtype=torch.float32)
                labels = given.new_zeros(len(rows), given.shape[-1])
            states[own], labels[own] = found.float(), given
    assert states is not None
    assert labels is not None
    verbose = int(head.spec.settings["verbose"]) % labels.shape[-1]
    weights, penalty = fitted(states, labels, verbose)
    head.module.get_buffer("weights").copy_(weights)
    head.module.get_buffer("penalty").copy_(penalty)
