"""Weights of 4 bits, by bitsandbytes: what adapters are trained on when memory is short.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4 with quantized scales. The layers of the language model are
quantized; vision tower, projector, embeddings and head keep their type, so features and log-probs lose nothing there.
Weights of 8 bits are not offered: which of a layer's inputs count as outliers depends on the whole batch there
(LLM.int8), so a row's log-probs would depend on the rows beside it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

from mmalign.errors import ModelError
from mmalign.lm.spec import Quantization


def quantization_config(kind: Quantization, outline: Any) -> BitsAndBytesConfig:
    """What to load a model with that is like `outline`, in whose type products are made.

    Raises ModelError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"model.quantization {kind}: bitsandbytes is not installed: pip install 'mmalign[qlora]'")
    inside = set(outline.get_decoder().modules())
    linear = [name for name, part in outline.named_modules() if isinstance(part, nn.Linear) and part not in inside]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=outline.dtype,
        llm_int8_skip_modules=linear,
    )


def is_quantized(model: Any) -> bool:
    """Whether some weights of the model, which may have adapters, are quantized."""
    return getattr(model.config, "quantization_config", None) is not None
