"""A model's last step on its own: from hidden states to logits.

Whole next-token distributions of the reference would fill a disk; the hidden states that they are made of are small,
and this turns them back into exactly the logits the model would have given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import TrainError


@dataclass(frozen=True)
class Head:
    """The linear layer that makes logits, and what some models do to its output: scale it, then cap it by tanh."""

    linear: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers model, also inside wrappers of accelerate and peft."""
        inner: Any = unwrapped(model)
        config = inner.config.get_text_config()
        scale = 1.0
        if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
            scale *= factor
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            scale /= divisor
        return cls(inner.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, states: Tensor) -> Tensor:
        """Logits (M, V) of hidden states (M, H), in the type that the linear layer gives."""
        logits: Tensor = self.linear(states)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def frozen(self) -> Head:
        """The same head for good: a copy where its weights are trained (or tied to some that are), else itself."""
        if not any(parameter.requires_grad for parameter in self.linear.parameters()):
            return self
        return replace(self, linear=copy.deepcopy(self.linear).eval().requires_grad_(False))

    def check(self, states: Tensor, logits: Tensor) -> None:
        """Raises TrainError unless these hidden states (M, H) give the model's own logits (M, V)."""
        tolerance = 1e-4 if logits.dtype == torch.float32 else 2e-2
        size = float(logits.float().abs().amax())
        if not torch.allclose(self(states).float(), logits.float(), rtol=tolerance, atol=tolerance * size):
            raise TrainError(
                "this model does more to its logits than mmalign knows, so the divergence from the reference cannot be "
                "computed: take an objective without it (dpo), or set objective.alpha to 0"
            )


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block every forward adds the hidden states that its head was given."""
    seen: list[Tensor] = []
    inner: Any = unwrapped(model)
    handle = inner.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers of accelerate and peft."""
    while True:
        if isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and callable(base := getattr(model, "get_base_model", None)):
            model = base()
        else:
            return model
