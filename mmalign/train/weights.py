"""Which weights are trained: adapters on the language model by default, or the model itself."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmalign.errors import TrainError
from mmalign.train.config import TrainConfig
from mmalign.train.logprobs.head import unwrapped

#: Attributes by which transformers' modules hold a dropout rate beside `nn.Dropout`.
DROPOUT_RATES = ("attention_dropout", "dropout", "activation_dropout", "dropout_p")


def trainable(model: Any, config: TrainConfig) -> Any:
    """The model, or the model with adapters, with exactly the weights that `config` names set to be trained.

    The model's own dropout is switched off: policy and reference must differ by their weights alone. A model that comes
    with an adapter goes on with it; for full training the adapter becomes part of the weights first. Raises TrainError
    when `lora.targets` match no layer, or the model cannot do gradient checkpointing.
    """
    carries_adapter = hasattr(model, "peft_config")
    if carries_adapter and config.lora is None:
        model, carries_adapter = merged_exactly(model), False
    switch_off_dropout(model)
    model.requires_grad_(False)
    if carries_adapter:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif config.lora is not None:
        model = _with_adapters(model, config)
    else:
        _unfreeze(model, config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainError("the model has no weights to train: its adapter is not a LoRA adapter; merge it first")
    for parameter in model.parameters():
        # Steps of AdamW are smaller than what 16 bits resolve.
        if parameter.dtype in (torch.bfloat16, torch.float16) and (
            parameter.requires_grad or config.precision == "fp32"
        ):
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise TrainError("train.gradient_checkpointing: this model does not support it; set it to false")
        model.activation_checkpointing_enable()
    return model


def merged_exactly(model: Any) -> Any:
    """The model with its adapter as part of the weights, which are float32 then; a model without is handed back.

    What an adapter adds is often less than the last digit of 16 bits, and training would begin without it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not hasattr(model, "peft_config"):
        return model
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            weight: Any = layer.get_base_layer().weight
            weight.data = weight.data.float()
    return model.merge_and_unload()


def training_mode(model: nn.Module) -> None:
    """Train mode where weights are trained, eval mode in parts that are frozen altogether (a vision tower)."""
    model.eval()
    for module in model.modules():
        if any(parameter.requires_grad for parameter in module.parameters()):
            module.training = True
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            module.training = True


def reaches_media(model: nn.Module) -> bool:
    """Whether weights outside the language model are trained, of which forwards about text alone make no use."""
    return any(weight.requires_grad for part in media_parts(model) for weight in part.parameters())


def media_parts(model: nn.Module) -> list[nn.Module]:
    """The largest modules with weights of which none belongs to the language model: tower, projector."""
    inner: Any = unwrapped(model)
    named = (inner.get_decoder(), inner.get_input_embeddings(), inner.get_output_embeddings())
    inside = {weight for part in named if part is not None for weight in part.parameters()}

    def parts(module: nn.Module) -> Iterator[nn.Module]:
        weights = set(module.parameters())
        if weights and not weights & inside:
            yield module
        elif weights - inside:
            for child in module.children():
                yield from parts(child)

    return list(parts(inner))


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate of the model, except that of adapters, to 0."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for rate in DROPOUT_RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def _with_adapters(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = config.lora
    assert lora is not None
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_pattern(model, lora.targets, config.freeze_vision),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, settings)


def _target_pattern(model: Any, targets: tuple[str, ...], freeze_vision: bool) -> str:
    """A pattern for peft that matches whole names of linear layers, those of the language model or all but the head."""
    head = model.get_output_embeddings()
    decoder = model.get_decoder()
    root = model if not freeze_vision else decoder
    prefix = next(name for name, module in model.named_modules() if module is root)
    linear = {
        _last_name(name)
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name
    }
    if absent := sorted(set(targets) - linear):
        raise TrainError(
            f"train.lora.targets: {', '.join(absent)}: no such linear layer; the model has {', '.join(sorted(linear))}"
        )
    names = "|".join(map(re.escape, sorted(targets or linear)))
    inside = rf"{re.escape(prefix)}\." if prefix else ""
    return rf"{inside}(?:.*\.)?(?:{names})"


def _last_name(name: str) -> str:
    """The last part of a dotted name, with the part before it where the last is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _unfreeze(model: Any, config: TrainConfig) -> None:
    """Train everything, or the language model and its head only."""
    if not config.freeze_vision:
        model.requires_grad_(True)
        return
    model.get_decoder().requires_grad_(True)
    if (head := model.get_output_embeddings()) is not None:
        head.requires_grad_(True)
