"""A model's last step on its own: from hidden states to logits.

Logits of whole rows would fill the memory, and the reference's a disk; the hidden states that they are made of are
small, and this turns them, a few tokens at a time, into exactly the logits the model would have given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmalign.errors import TrainError

#: Numbers of one vocabulary matrix (tokens x V) and its copies that are held at a time; 64 MiB in float32.
NUMBERS = 1 << 24


@dataclass(frozen=True)
class Head:
    """The linear layer that makes logits, and what some models do to its output: scale it, then cap it by tanh."""

    linear: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers model, also inside wrappers of accelerate and peft.

        Raises TrainError for a model without one.
        """
        inner: Any = unwrapped(model)
        if (linear := getattr(inner, "get_output_embeddings", lambda: None)()) is None:
            raise TrainError(f"{type(inner).__name__} has no output layer that can be told from the rest of it")
        config = inner.config.get_text_config()
        scale = 1.0
        if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
            scale *= factor
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            scale /= divisor
        return cls(linear, scale, getattr(config, "final_logit_softcapping", None))

    @property
    def is_plain(self) -> bool:
        """Whether the layer is a matrix and a bias and nothing else: no adapter on it, no packed weights."""
        return isinstance(self.linear, nn.Linear) and type(self.linear).forward is nn.Linear.forward

    @property
    def vocabulary(self) -> int:
        """V."""
        size: Any = self.linear.out_features
        return int(size)

    @property
    def width(self) -> int:
        """H."""
        size: Any = self.linear.in_features
        return int(size)

    @property
    def is_concave(self) -> bool:
        """Whether log-probs are a concave function of states, computed exactly enough to measure how concave.

        The layer is plain, nothing caps what it gives, and products are not rounded to fewer than float32's digits.
        """
        if not self.is_plain or self.softcap is not None:
            return False
        layer: Any = self.linear
        dtype = product_type(self, layer.weight.device)
        return dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"

    def raw(self, states: Tensor) -> Tensor:
        """What the layer makes of states (..., H): no call, for its hooks are those of the model's own forward."""
        found: Tensor = type(self.linear).forward(self.linear, states)
        return found

    def shaped(self, raw: Tensor) -> Tensor:
        """Logits (..., V) from what the layer gave, in float32 or better."""
        logits = exact(raw)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def __call__(self, states: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., H), in float32 or better."""
        return self.shaped(self.raw(states))

    def many(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The same function, for many calls: weights are turned to `dtype` once."""
        if not self.is_plain:
            return self
        layer: Any = self.linear
        weight, bias = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
        return lambda states: self.shaped(functional.linear(states.to(dtype), weight, bias))

    def frozen(self) -> Head:
        """The same head for good: a copy where its weights are trained (or tied to some that are), else itself."""
        if not any(parameter.requires_grad for parameter in self.linear.parameters()):
            return self
        return replace(self, linear=copy.deepcopy(self.linear).eval().requires_grad_(False))

    def gives(self, raw: Tensor, logits: Tensor) -> bool:
        """Whether these are the model's own logits (M, V) where the layer gave `raw` (M, V)."""
        if raw.shape != logits.shape:
            return False
        tolerance = 1e-4 if raw.dtype in (torch.float32, torch.float64) else 2e-2
        found = self.shaped(raw)
        own = logits.to(found.dtype)
        return torch.allclose(found, own, rtol=tolerance, atol=tolerance * float(own.abs().amax()))


@dataclass(frozen=True, slots=True)
class Anchor:
    """Next-token distributions of a model that does not learn, as what makes them.

    `states` (M, H) are the inputs of its `head` for the tokens in question, answer after answer. Behind them can stand
    what `streamed.tangents` adds, (M, 2H + 1).
    """

    states: Tensor
    head: Head

    @property
    def inputs(self) -> Tensor:
        """What the head is given (M, H)."""
        return self.states[:, : self.head.width] if self.head.is_plain else self.states

    @property
    def has_tangents(self) -> bool:
        """Whether slopes and log-probs stand behind the inputs."""
        return self.head.is_plain and self.states.shape[-1] == 2 * self.head.width + 1


def exact(values: Tensor) -> Tensor:
    """Values in float32, or in what they have that is better."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tokens_at_once(vocabulary: int, matrices: int) -> int:
    """How many tokens are computed at a time where each takes `matrices` rows of the vocabulary."""
    return max(1, NUMBERS // (vocabulary * matrices))


def product_type(head: Head, device: torch.device) -> torch.dtype:
    """The type in which states and weights are multiplied: that of autocast where it is on, else the weights'."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(head.linear.parameters()).dtype


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers of accelerate and peft."""
    while True:
        if isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and callable(base := getattr(model, "get_base_model", None)):
            model = base()
        else:
            return model
