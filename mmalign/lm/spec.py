"""Which model to load and how. Loads no torch, so recipes and the command line can build it freely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["nf4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The `model` section of a recipe."""

    name: str = "tiny"
    """"tiny" (the embedded model), a folder, or the name of a model on the hub."""
    dtype: Dtype = "auto"
    """Number type of the weights; "auto" is float32 on a CPU and the checkpoint's own type on an accelerator."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" takes CUDA when there is one."""
    adapter: str | None = None
    """Folder of a PEFT adapter to put on top of the model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    attn_implementation: str | None = None
    """"sdpa", "eager", "flash_attention_2", ...; None leaves the choice to transformers."""
    quantization: Quantization | None = None
    """nf4 loads the language model's layers in 4 bits, to train adapters on (QLoRA); None leaves them as they are."""
    download: bool = False
    """Whether a hub model that is not in the local cache may be fetched."""
