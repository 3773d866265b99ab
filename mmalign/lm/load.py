"""From a `ModelSpec` to a model and its processor: local first, safetensors only, no code from the checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmalign.errors import MMAlignError, ModelError
from mmalign.lm.quantize import quantization_config
from mmalign.lm.render import Renderer
from mmalign.lm.spec import Dtype, ModelSpec

#: Why weights cannot be read.
_UNREADABLE = "its weights cannot be read ({}); they are cut off, or Git LFS pointers: fetch them again"


@dataclass
class Loaded:
    """A model in eval mode, the processor (tokenizer for a text-only model) it came with, and a name for provenance."""

    model: Any
    processor: Any
    name: str

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.processor, self.model.config)


def load_model(spec: ModelSpec, *, stay_on_cpu: bool = False) -> Loaded:
    """Load what `spec` names. Raises ModelError, in one line, when it cannot.

    With `stay_on_cpu` the weights are not taken to the device that they are for, but for those that are quantized.

    An image-text-to-text config gives such a model with its processor, a causal-LM config one with its tokenizer.
    Nothing is fetched unless `spec.download`; weights must be safetensors; code inside checkpoints never runs.
    Torch's thread count is left alone: on a machine that is busy with other work set OMP_NUM_THREADS=1, because
    threads that wait for a core spin and make small models several times slower.
    """
    device = _device(spec.device)
    weights: dict[str, Any] = {"use_safetensors": True, "dtype": _dtype(spec.dtype, device)}
    if spec.attn_implementation is not None:
        weights["attn_implementation"] = spec.attn_implementation
    if spec.quantization is not None:
        outline = load_outline(replace(spec, adapter=None))
        weights["quantization_config"] = quantization_config(spec.quantization, outline)
        weights["device_map"] = {"": device}
        stay_on_cpu = True  # where they are quantized is where they stay
    with _explained(spec) as (source, common):
        config = AutoConfig.from_pretrained(source, **common)
        kind = AutoModelForImageTextToText if _sees(spec, config) else AutoModelForCausalLM
        model: Any = kind.from_pretrained(source, config=config, **weights, **common)
        processor = _processor(source, common, sees=_sees(spec, config))
    if spec.adapter is not None:
        model = _with_adapter(model, spec.adapter)
    name = spec.name if spec.adapter is None else f"{spec.name}+{spec.adapter}"
    if not stay_on_cpu:
        with _explained(spec):
            model = model.to(device)
    return Loaded(model.eval().requires_grad_(False), processor, name)


def device_of(spec: ModelSpec) -> torch.device:
    """Where the model of `spec` goes. Raises ModelError for a device that this machine has not."""
    return _device(spec.device)


def load_outline(spec: ModelSpec) -> Any:
    """The model of `spec` on the meta device: its layers and the shapes and types of its weights, without their values.

    Where it has an adapter, the adapter's layers are there too. Raises ModelError as `load_model` does.
    """
    with _explained(spec) as (source, common):
        config = AutoConfig.from_pretrained(source, **common)
        kind = AutoModelForImageTextToText if _sees(spec, config) else AutoModelForCausalLM
        dtype = _dtype(spec.dtype, device_of(spec))
        known = {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
        with torch.device("meta"), no_init_weights():
            stored = config.dtype or torch.float32
            model: Any = kind.from_config(config, dtype=stored if isinstance(dtype, str) else dtype, **known)
            if spec.adapter is not None:
                from peft import PeftConfig, PeftModel

                model = PeftModel(model, PeftConfig.from_pretrained(spec.adapter))
    return model.eval().requires_grad_(False)


def stored_dtype(spec: ModelSpec) -> Dtype:
    """The number type that the checkpoint of `spec` says its weights have; float32 where it says none."""
    with _explained(spec) as (source, common):
        named = AutoConfig.from_pretrained(source, **common).dtype
    found: Dtype = "float32" if named is None else str(named).removeprefix("torch.")  # type: ignore[assignment]
    return found


def load_renderer(spec: ModelSpec) -> Renderer:
    """What renders chats for the model, without its weights: enough to count tokens and to check media."""
    with _explained(spec) as (source, common):
        config = AutoConfig.from_pretrained(source, **common)
        processor = _processor(source, common, sees=_sees(spec, config))
    return Renderer(processor, config)


def _sees(spec: ModelSpec, config: Any) -> bool:
    """Whether the config is one of an image-text-to-text model; ModelError if of no model that writes text."""
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    what = type(config).__name__
    raise ModelError(f"model.name {spec.name!r}: {what} is neither an image-text-to-text model nor a causal LM")


def _processor(source: str, common: dict[str, Any], *, sees: bool) -> Any:
    return (AutoProcessor if sees else AutoTokenizer).from_pretrained(source, **common)


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where to load from and with what arguments; what goes wrong inside becomes a ModelError of one line."""
    source = _source(spec)
    common = {
        "trust_remote_code": False,
        "local_files_only": not spec.download or Path(source).is_dir(),
        "revision": spec.revision or "main",
    }
    had_bar = is_progress_bar_enabled()
    if spec.name == "tiny":
        disable_progress_bar()  # it loads in an instant
    try:
        yield source, common
    except MMAlignError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"model.name {spec.name!r}: memory ran out while it was loaded; {_first_line(error)}"
        ) from error
    except Exception as error:  # a damaged folder makes transformers and tokenizers fail in any way
        raise ModelError(_why(spec, source, error)) from error
    finally:
        if had_bar:
            enable_progress_bar()


def _source(spec: ModelSpec) -> str:
    if spec.name == "tiny":
        folder = Path(str(files("mmalign.tiny"))) / "model"
        if not folder.is_dir():
            raise ModelError("model.name 'tiny': the embedded model is missing from this install; reinstall mmalign")
        return str(folder)
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.name {spec.name!r}: the folder holds no config.json, so no transformers model")
        return str(folder)
    if folder.is_absolute() or spec.name.startswith((".", "~")) or folder.exists() or spec.name.count("/") > 1:
        raise ModelError(f"model.name {spec.name!r}: there is no such folder")
    return spec.name


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"model.device {name!r}: give auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"model.device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; try auto")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ModelError(f"model.dtype {name!r}: give auto, {', '.join(known)}")
    return known[name]


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    for needed in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / needed).is_file():
            raise ModelError(f"model.adapter {adapter!r}: the folder holds no {needed}")
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except SafetensorError as error:
        raise ModelError(f"model.adapter {adapter!r}: {_UNREADABLE.format(error)}") from error
    except Exception as error:  # a damaged folder makes peft fail in any way
        raise ModelError(f"model.adapter {adapter!r} does not fit the model: {_told(error)}") from error


def _why(spec: ModelSpec, source: str, error: Exception) -> str:
    folder = Path(source)
    if isinstance(error, SafetensorError):
        return f"model.name {spec.name!r}: {_UNREADABLE.format(error)}"
    if folder.is_dir():
        if isinstance(error, OSError) and not any(folder.glob("*.safetensors")):
            return f"model.name {spec.name!r}: the folder holds no .safetensors weights (other formats are not loaded)"
        return f"model.name {spec.name!r}: {_told(error)}"
    if not spec.download and isinstance(error, OSError | ValueError):
        return (
            f"model.name {spec.name!r} is neither a folder nor in the local Hugging Face cache: "
            "give a folder, or set model.download: true to fetch it"
        )
    return f"model.name {spec.name!r} cannot be {'fetched' if spec.download else 'loaded'}: {_told(error)}"


def _told(error: Exception) -> str:
    """An error in one line; the kind of one that speaks to programmers comes first."""
    is_plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError)
    return _first_line(error) if is_plain else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
