"""Log-probabilities of completions from one forward over whole sequences (the plain road).

Every implementation takes a `PairBatch` and returns the same values; one that computes the shared prompt once would
stand beside this function.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.train.collate import PairBatch

#: Completion tokens whose vocabulary row is held in float32 at a time.
CHUNK = 256


def completion_logps(model: nn.Module, batch: PairBatch) -> Tensor:
    """Log-probability of every completion token, (N, T) float32 in nats, N = sides x pairs, 0 on padding.

    The order of N is that of `batch.inputs`; columns are the completion tokens in order. The head runs only between
    the first and the last position that predicts a completion token of any row, and only completion positions are
    ever turned to float32.
    """
    targets = batch.completion_mask[:, 1:]
    columns = targets.any(0).nonzero().squeeze(-1)
    start, stop = int(columns[0]), int(columns[-1]) + 1
    keep: dict[str, Any] = {}
    if _keeps_logits(type(_unwrapped(model)).forward):
        keep["logits_to_keep"] = torch.arange(start, stop, device=targets.device)
    logits = model(**batch.inputs, use_cache=False, **keep).logits
    if not keep:
        logits = logits[:, start:stop]
    selected = targets[:, start:stop]
    labels = batch.inputs["input_ids"][:, 1:][:, start:stop][selected]
    logps = _label_logps(logits[selected], labels)
    return logps.new_zeros(batch.mask.shape).masked_scatter(batch.mask, logps)


def _label_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log of softmax(logits)[labels] in float32: logits (M, V), labels (M,) -> (M,)."""
    chunks = [
        part.float().gather(-1, label[:, None]).squeeze(-1) - part.float().logsumexp(-1)
        for part, label in zip(torch.split(logits, CHUNK), torch.split(labels, CHUNK), strict=True)
    ]
    return torch.cat(chunks)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers of accelerate and peft."""
    while True:
        if isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and callable(base := getattr(model, "get_base_model", None)):
            model = base()
        else:
            return model


@cache
def _keeps_logits(forward: Any) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters
