"""Training state as one safetensors file, written beside and moved into place, so a kill never leaves half of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(path: Path, module: nn.Module, parts: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Write the module's parameters, the optimizers' state and the number of steps done."""
    tensors: dict[str, Tensor] = {f"weight/{name}": value.detach() for name, value in module.named_parameters()}
    for at, optimizer in enumerate(parts):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"state/{at}/{index}/{name}"] = torch.as_tensor(value)
    copies = {name: value.clone().contiguous() for name, value in tensors.items()}
    beside = path.with_suffix(".partial")
    save_file(copies, beside, metadata={"step": str(step)})
    beside.replace(path)


def load_checkpoint(path: Path, module: nn.Module, parts: Sequence[torch.optim.Optimizer]) -> int:
    """Restore what `save_checkpoint` wrote; returns the steps done, 0 when there is no file."""
    if not path.exists():
        return 0
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in parts]
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        weights = dict(module.named_parameters())
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key.startswith("weight/"):
                weights[key.removeprefix("weight/")].copy_(file.get_tensor(key))
            else:
                _, at, index, name = key.split("/")
                states[int(at)].setdefault(int(index), {})[name] = file.get_tensor(key)
    for optimizer, state in zip(parts, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
