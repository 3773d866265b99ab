"""Weights and optimizer state as if one process held them all, whatever part of them each rank has.

DDP leaves every weight whole on every rank, FSDP2 makes it a `DTensor`, DeepSpeed ZeRO keeps the optimizer's numbers
(stage 2) or also the weights (stage 3) as slices of flat buffers. What is written to disk shows nothing of that, so a
run goes on with another number of ranks, or another way to share. Reading and writing are done by all ranks together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

#: AdamW's running means, as DeepSpeed names them too.
MOMENTS = ("exp_avg", "exp_avg_sq")


def trained_weights(model: nn.Module, *, kept: bool = True) -> dict[str, Tensor]:
    """The weights that training changes, by name, on the CPU; an empty dict where they need not be `kept`."""
    found = {}
    for name, parameter in _trained(model):
        value = _whole(parameter)
        if kept:
            found[name] = value
    return found


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that training changes."""
    with torch.no_grad():
        for name, parameter in _trained(model):
            _set(parameter, weights[name])


def all_weights(model: nn.Module, *, kept: bool = True) -> dict[str, Tensor]:
    """The model's whole `state_dict` on the CPU; what is tied stays one tensor."""
    found: dict[str, Tensor] = {}
    values: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in values:
            value = _whole(tensor)
            values[id(tensor)] = value if kept else value.new_empty(0)
        if kept:
            found[name] = values[id(tensor)]
    return found


def optimizer_state(model: nn.Module, optimizer: Any, *, kept: bool = True) -> dict[str, dict[str, Tensor]]:
    """The optimizer's numbers for every weight that is trained, by the weight's name."""
    found = {}
    for name, parameter in _trained(model):
        if _has_flat_state(parameter):
            state = _flat_state(parameter, optimizer)
        else:
            state = {key: _whole(value) for key, value in optimizer.state[parameter].items()}
        if kept:
            found[name] = state
    return found


def load_optimizer_state(model: nn.Module, optimizer: Any, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set the optimizer's numbers; weights without any have not been stepped yet."""
    for name, parameter in _trained(model):
        if not (state := states.get(name)):
            continue
        if _has_flat_state(parameter):
            _set_flat_state(parameter, optimizer, state)
            continue
        optimizer.state[parameter] = {
            # The count of steps stays where AdamW wants it: on the CPU.
            key: _like(value, parameter) if value.shape == parameter.shape and value.ndim else value.clone()
            for key, value in state.items()
        }


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Within the block `model` is of its own class, by which transformers knows the names to save weights under."""
    kind = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = kind.__mro__[kind.__mro__.index(FSDPModule) + 1]
    try:
        yield
    finally:
        model.__class__ = kind


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU."""
    if _is_in_slices(tensor):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    value = tensor.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    if _has_flat_state(parameter):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value.to(parameter.device))
    if not _is_in_slices(parameter):
        parameter.copy_(_like(value, parameter))


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """`value` on the parameter's device, and this rank's part of it where the parameter is one."""
    value = value.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return value.clone()
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


# DeepSpeed ----------------------------------------------------------------------------------------------------------


def _is_in_slices(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _has_flat_state(tensor: Tensor) -> bool:
    return _is_in_slices(tensor) or hasattr(tensor, "_hp_mapping")


def _flat_state(parameter: nn.Parameter, optimizer: Any) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {key: safe_get_full_optimizer_state(parameter, key).cpu().clone() for key in MOMENTS}
    return {**moments, "step": next(_steps(optimizer)).detach().cpu().clone()}


def _set_flat_state(parameter: nn.Parameter, optimizer: Any, state: Mapping[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    for key in MOMENTS:
        safe_set_full_optimizer_state(parameter, state[key].to(parameter.device), key)
    for step in _steps(optimizer):
        step.copy_(state["step"])


def _steps(optimizer: Any) -> Iterator[Tensor]:
    """AdamW's counts of steps, one for each flat buffer."""
    inner = optimizer
    while (wrapped := getattr(inner, "optimizer", None)) is not None:
        inner = wrapped
    return (state["step"] for state in inner.state.values())
