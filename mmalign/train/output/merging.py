"""An adapter made part of the weights: a whole model that loads without peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from mmalign.atomic import replacing
from mmalign.errors import TrainError
from mmalign.lm.load import load_model, stored_dtype
from mmalign.lm.spec import ModelSpec


def merge(spec: ModelSpec, folder: Path) -> None:
    """Write the model of `spec`, its adapter added to its weights, with its processor to `folder`.

    Weights keep the type that they have in the checkpoint, or the one that `spec` names; of 16 bits, sums with the
    adapter are made in float32 and rounded once. It takes the memory of the model, on the CPU. Raises TrainError where
    there is no adapter, or the weights are quantized.
    """
    if spec.adapter is None:
        raise TrainError(f"{spec.name}: there is no adapter to merge; all weights were trained, and are a whole model")
    dtype = stored_dtype(spec) if spec.dtype == "auto" else spec.dtype
    loaded = load_model(replace(spec, device="cpu", dtype=dtype))
    model = merged(loaded.model)
    with replacing(folder.resolve()) as partial:  # a link stays one
        model.save_pretrained(partial)
        loaded.processor.save_pretrained(partial)


def merged(model: PeftModel) -> Any:
    """The model inside, its adapter added to its weights in place. Raises TrainError for quantized weights."""
    weights = [layer.get_base_layer().weight for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if getattr(model.config, "quantization_config", None) or not all(map(torch.is_floating_point, weights)):
        raise TrainError(
            "the model's weights are quantized, and an adapter would be lost in rounding to them; keep the adapter "
            "beside them, or merge into the full weights: give the model they were made from"
        )
    return model.merge_and_unload()
