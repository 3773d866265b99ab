"""Contexts as a model takes them, each seen by the frozen vision tower once: for policy and reference, all answers, all
epochs, and with a folder for all runs.

What is kept of a context is all that its rows in a batch are made of, so one that is known needs no file of its media,
no decoder, no processor and no tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmalign.lm.render import Renderer
from mmalign.lm.vision import NO_FEATURES, Features, see, takes_features, without_pixels
from mmalign.media.read import MediaLimits
from mmalign.train.cache.keys import config_settings, parameters_key, short_key, unrecorded, versions
from mmalign.train.cache.tensor_cache import TensorCache
from mmalign.train.config import TrainConfig
from mmalign.train.logprobs.head import unwrapped
from mmalign.train.optimizer import autocast
from mmalign.train.weights import reaches_media
from mmalign.types import Media, Row


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered context (1, L): `inputs` are the forward's arguments without pixels, `features` those of its media."""

    inputs: Mapping[str, Tensor]
    features: Features

    def followed(self, cut: int, tokens: Sequence[int]) -> Encoded:
        """The same without its last `cut` tokens and with `tokens` of text behind it."""
        length = self.inputs["input_ids"].shape[1] - cut
        behind = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
        plain = torch.zeros_like(behind["input_ids"])
        longer = {
            name: torch.cat([value[:, :length], behind.get(name, plain).to(value.dtype)], -1)
            for name, value in self.inputs.items()
            if _is_by_token(name, self.inputs)
        }
        return Encoded({**self.inputs, **longer}, self.features)


def batched(rows: Sequence[Encoded], fill: int) -> tuple[dict[str, Tensor], Features]:
    """Contexts as one batch, padded on the right: `input_ids` with `fill`, all else with 0."""
    width = max(row.inputs["input_ids"].shape[1] for row in rows)
    names = dict.fromkeys(name for row in rows for name in row.inputs)
    inputs = {}
    for name in names:
        own = [row.inputs for row in rows if name in row.inputs]
        if not _is_by_token(name, own[0]):
            inputs[name] = torch.cat([values[name] for values in own])
            continue
        # A processor may leave out what is 0 for text.
        every = [row.inputs.get(name, torch.zeros_like(row.inputs["input_ids"])) for row in rows]
        value = fill if name == "input_ids" else 0
        inputs[name] = torch.cat([pad(values, (0, width - values.shape[1]), value=value) for values in every])
    return inputs, Features.joined([row.features for row in rows])


def _is_by_token(name: str, inputs: Mapping[str, Tensor]) -> bool:
    return inputs[name].shape == inputs["input_ids"].shape


@dataclass(frozen=True)
class ContextEncoder:
    """Encodes contexts, or finds them in `cache`.

    `model` is a bare transformers model whose tower is frozen, `key` names all that the results depend on beside the
    context, `autocast` is the block in which the model's forwards run.
    """

    model: Any
    renderer: Renderer
    cache: TensorCache
    key: str
    autocast: Callable[[], AbstractContextManager[Any]]

    @classmethod
    def of(
        cls, model: nn.Module, renderer: Renderer, config: TrainConfig, *, processor: str, limits: MediaLimits
    ) -> ContextEncoder | None:
        """That of a model as it is trained; None where features are not to be computed once, or cannot be.

        They cannot where weights that make them are trained, and where the forward takes none. `processor` is the key
        of processor and template. Raises TrainError for a cache folder that cannot be written to.
        """
        inner: Any = unwrapped(model)
        if config.vision_once == "off" or not renderer.is_multimodal or not takes_features(inner):
            return None
        if reaches_media(model) or inner.get_decoder() in (inner, inner.base_model):
            return None
        device = next(inner.parameters()).device
        key = encoder_key(inner, processor, asdict(limits), config.precision)
        folder = None if config.feature_cache is None else Path(config.feature_cache).expanduser()
        cache = TensorCache(folder, int(config.feature_cache_gb * 1e9), int(config.feature_memory_gb * 1e9))
        return cls(inner, renderer, cache, key, partial(autocast, device, config))

    def __call__(self, turns: Sequence[Row], prompt: str, opened: Callable[[], Sequence[Media]]) -> Encoded:
        """The context `turns`, rendered as `prompt`; `opened` opens its media and is called where it is not known.

        Features depend on the media alone, so contexts that ask differently about the same share them. Raises
        ValueError for media that the processor refuses.
        """
        rows = [part for turn in turns for part in turn["content"] if part["type"] != "text"]
        if not rows:
            return Encoded(dict(self.renderer.encode([prompt], [()])), NO_FEATURES)
        # A file that nothing but its path is known of may be another one in the next run.
        lasts = not any(unrecorded(rows))
        media = _content(rows)
        names = [_name("features", self.key, media), _name("tokens", self.key, media, prompt)]
        features, tokens = map(self.cache.get, names)
        if features is None or tokens is None:
            encoded = dict(self.renderer.encode([prompt], [opened()]))
            if tokens is None:
                tokens = without_pixels(self.model, encoded)
                self.cache.put(names[1], tokens, lasts=lasts)
            if features is None:
                with torch.no_grad(), self.autocast():
                    features = see(self.model, encoded).tensors()
                features = {name: value.cpu() for name, value in features.items()}
                self.cache.put(names[0], features, lasts=lasts)
        return Encoded(tokens, Features.from_tensors(features))


def encoder_key(model: Any, processor: str, limits: Mapping[str, Any], precision: str) -> str:
    """A short name for all that encoded contexts depend on beside the context.

    `model` is a bare transformers model, `processor` the key of its processor and template, `limits` those under which
    media are opened, `precision` that of its forwards. Versions count, for libraries may compute other last bits.
    """
    config = model.config.to_dict()
    kernel = getattr(getattr(model.config, "vision_config", None), "_attn_implementation", None)
    device = next(model.parameters()).device.type
    weights = parameters_key(_outside_language(model))
    forms = [processor, limits, precision, config_settings(config, "text_config"), kernel, device, versions(), weights]
    return short_key(json.loads(json.dumps(forms, default=str)))


def _outside_language(model: Any) -> Iterator[tuple[str, Tensor]]:
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    inside = {weight for part in parts if part is not None for weight in part.parameters()}
    return ((name, weight) for name, weight in model.named_parameters() if weight not in inside)


def _content(value: Any) -> Any:
    """Rows of media, at any depth, without the paths of those that are known by their content."""
    if isinstance(value, dict):
        is_known = bool(value.get("sha256"))
        return {key: _content(part) for key, part in value.items() if not (is_known and key == "path")}
    return [_content(part) for part in value] if isinstance(value, list) else value


def _name(*values: Any) -> str:
    plain = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return f"{values[0]}-{hashlib.sha256(plain.encode()).hexdigest()[:32]}"
