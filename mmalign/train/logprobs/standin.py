"""Something else in place of a model's logits, computed within its own forward.

There the output layer's weights are at hand, however they are spread over machines, and what is computed hangs on the
model's output as its logits would, which wrappers of distributed training take for all that a forward gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Key = TypeVar("Key")


class UnknownUseError(Exception):
    """The model does not simply give its layers' last hidden states to its head, once."""


def instead_of_logits(
    model: nn.Module,
    layer: nn.Module,
    inputs: Mapping[str, Any],
    compute: Callable[[Tensor], tuple[dict[Key, Tensor], Tensor]],
) -> tuple[dict[Key, Tensor], Tensor]:
    """What `compute` makes of the hidden states (rows, L, H) that the model's output `layer` is given.

    With it come a few logits (1, C, V) of which the model believes that they are all; what it makes of them is returned
    with the values. `model` may be wrapped. Raises UnknownUseError where the layer is not called, or more than once.
    """
    calls: list[dict[Key, Tensor]] = []

    def forward(hidden: Tensor) -> Tensor:
        if calls:
            raise UnknownUseError
        values, logits = compute(hidden)
        calls.append(values)
        stand_in: Tensor = _StandIn.apply(logits, *_learning(values).values())
        return stand_in

    with _replaced(layer, forward):
        output: Tensor = model(**inputs).logits
    if not calls:
        raise UnknownUseError
    found = calls[0]
    if learning := _learning(found):
        found |= zip(learning, _Connected.apply(output, *learning.values()), strict=True)
    return found, output


def _learning(values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    return {key: value for key, value in values.items() if value.requires_grad}


@contextmanager
def _replaced(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block the layer does `forward`; its hooks, which may bring its weights here, run as ever."""
    attributes = vars(layer)
    own = {name: attributes[name] for name in ("forward",) if name in attributes}
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(own)


class _StandIn(torch.autograd.Function):
    """Logits that follow from values, as far as the graph knows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *values: Tensor) -> Tensor:
        ctx.save_for_backward(*values)
        return logits.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.zeros_like(value) for value in ctx.saved_tensors)


class _Connected(torch.autograd.Function):
    """Values, which now follow from the output too, so that its hooks are called before what lies behind them."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(output)
        return tuple(value.clone() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output), *grads
