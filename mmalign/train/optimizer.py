"""The optimizer, and the type that forwards compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmalign.train.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the weights that are trained; vectors (norms, biases) do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


def autocast(device: torch.device, config: TrainConfig) -> Any:
    """The block that a forward runs in.

    Not accelerate's own, which would turn whole outputs, logits included, back to float32.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
