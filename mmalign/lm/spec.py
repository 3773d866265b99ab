"""Which model to load and how, or which server to ask. Loads no torch, so recipes can build it freely."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["nf4"]
Serving = Literal["openai", "vllm", "sglang", "llamacpp", "transformers"]
ClipForm = Literal["frames", "video"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """The `server` section of a recipe: an OpenAI-compatible endpoint that answers in place of a model loaded here.

    Args:
        url: Where the API begins, such as http://localhost:8000/v1; without it the model is loaded on this machine.
        model: The name that the server knows the model by; `model.name` by default.
        kind: What runs there. It says how the server is told to keep stop strings, to go on with an answer that was
            begun and to sample with nothing but what is asked for; openai has only what OpenAI itself documents.
        clips: How videos are sent: their frames as pictures, or one lossless MP4 for servers that take `video_url`.
        api_key_env: The environment variable that holds the key; without it no key is sent.
        max_in_flight: Most requests at once, of each worker.
        timeout_s: Seconds until a request is given up and tried again.
        retries: How often a request is tried again when the server is busy, broken or gone.
        backoff_s: Seconds before the first retry; they double, with jitter, unless the server says how long to wait.
        max_backoff_s: Longest wait between two tries, also where the server asks for a longer one.
    """

    url: str | None = None
    model: str | None = None
    kind: Serving = "openai"
    clips: ClipForm = "frames"
    api_key_env: str | None = None
    max_in_flight: int = 32
    timeout_s: float = 300.0
    retries: int = 6
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        if self.url is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", self.url):
            raise ValueError(
                "url: give http://HOST:PORT/v1 or https://..., without a user, a password or a query; "
                "a key is read from the variable that api_key_env names"
            )
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env: give the name of an environment variable, not the key itself")
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight is {self.max_in_flight}; it must be 1 or more")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be 0 or more")
        for key in ("timeout_s", "backoff_s", "max_backoff_s"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise ValueError(f"{key} is {value}; it must be a number above 0")
