"""What a model's vision tower and projector make of media, apart from the forward that reads it.

A frozen tower gives the same features in every forward, so they can be computed once. transformers' models take them
in place of pixels, as `mm_encoder_outputs`: the n-th placeholder token of a kind, row by row, gets the n-th feature.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

#: Kinds of media and the processor's name for their pixels.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass
class TowerOutput(ModelOutput):  # type: ignore[misc]  # transformers.utils tells mypy nothing
    """Features in the form in which a model's forward reads them."""

    pooler_output: Any = None
    deepstack_features: Any = None


@dataclass(frozen=True, slots=True)
class Features:
    """Features of the media of some rows, by kind of media.

    `pooled[kind]` (M, H) are one for each placeholder token, in the order of rows and tokens; `deep[kind]` (M, H) those
    that deeper layers of the language model add (Qwen3-VL), layer by layer. `listed` names the kinds that the model
    hands on as a list of tensors, one a medium, not as one tensor.
    """

    pooled: Mapping[str, Tensor]
    deep: Mapping[str, tuple[Tensor, ...]]
    listed: frozenset[str]

    @classmethod
    def joined(cls, rows: Sequence[Features]) -> Features:
        """Features of rows in a batch of them, in this order; rows without media have none."""
        pooled, deep = {}, {}
        for kind in PIXELS:
            if own := [row for row in rows if kind in row.pooled]:
                pooled[kind] = torch.cat([row.pooled[kind] for row in own])
                layers = zip(*(row.deep[kind] for row in own), strict=True)
                deep[kind] = tuple(torch.cat(layer) for layer in layers)
        return cls(pooled, deep, frozenset().union(*(row.listed for row in rows)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Features:
        """What `tensors` gave."""
        pooled, deep, listed = {}, {}, set()
        for kind in PIXELS:
            for form in ("list", "tensor"):
                if f"{kind}.{form}" in tensors:
                    pooled[kind] = tensors[f"{kind}.{form}"]
                    listed |= {kind} if form == "list" else set()
            count = sum(name.startswith(f"{kind}.deep.") for name in tensors)
            deep[kind] = tuple(tensors[f"{kind}.deep.{layer}"] for layer in range(count))
        return cls(pooled, {kind: deep[kind] for kind in pooled}, frozenset(listed))

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors, to be stored."""
        found = {f"{kind}.{'list' if kind in self.listed else 'tensor'}": own for kind, own in self.pooled.items()}
        for kind, layers in self.deep.items():
            found |= {f"{kind}.deep.{number}": layer for number, layer in enumerate(layers)}
        return found

    def arguments(self) -> dict[str, Any]:
        """What the forward is given in place of pixels; nothing where no row has media."""
        if not self.pooled:
            return {}
        outputs = {}
        for kind, pooled in self.pooled.items():
            # As transformers does where it cuts such outputs itself: one medium that holds all features.
            whole = [pooled] if kind in self.listed else pooled[None]
            outputs[kind] = TowerOutput(whole, [[layer] for layer in self.deep[kind]])
        return {"mm_encoder_outputs": outputs}

    def to(self, device: torch.device) -> Features:
        """The same on `device`."""
        deep = {kind: tuple(layer.to(device) for layer in layers) for kind, layers in self.deep.items()}
        return Features({kind: flat.to(device) for kind, flat in self.pooled.items()}, deep, self.listed)


#: Of rows without media.
NO_FEATURES = Features({}, {}, frozenset())


def takes_features(model: Any) -> bool:
    """Whether the forward of a bare transformers model takes features in place of pixels."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


@torch.no_grad()
def see(model: Any, encoded: Mapping[str, Tensor]) -> Features:
    """Features of the media in `encoded`, a processor's tensors for some rows: one pass of the tower for each kind.

    `model` is a bare transformers model with `takes_features`.
    """
    pooled, deep, listed = {}, {}, set()
    for kind, encode in _encoders(model).items():
        if PIXELS[kind] not in encoded:
            continue
        device = next(model.parameters()).device
        given = {name: value.to(device) for name, value in encoded.items() if name in _taken(encode)}
        made = encode(**given, return_dict=True)
        pooled[kind] = _flat(made.pooler_output)
        deep[kind] = tuple(_flat(layer) for layer in getattr(made, "deepstack_features", None) or ())
        listed |= set() if torch.is_tensor(made.pooler_output) else {kind}
    return Features(pooled, deep, frozenset(listed))


def without_pixels(model: Any, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the forward needs of `encoded` beside features: all but what only the tower reads."""
    used = {name for encode in _encoders(model).values() for name in _taken(encode)}
    places = getattr(model.base_model, "get_rope_index", None)
    kept = set() if places is None else _taken(places)
    return {name: value for name, value in encoded.items() if name in kept or name not in used}


def _encoders(model: Any) -> dict[str, Any]:
    """The methods that run the tower, by kind of media."""
    found = {kind: getattr(model.base_model, f"get_{kind}_features", None) for kind in PIXELS}
    return {kind: encode for kind, encode in found.items() if encode is not None}


def _taken(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _flat(parts: Any) -> Tensor:
    """Features (M, H) of several media in order."""
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    return torch.cat(flat).contiguous()
