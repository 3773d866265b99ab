"""The processes that train together, and what each holds of the model.

DDP: all of it. FSDP2 and DeepSpeed ZeRO-3: a part of every weight, which the others send when it is needed. ZeRO-2: all
weights, a part of gradients and optimizer. Which it is, `accelerate launch --config_file` says; the files are in
`recipes/accelerate/`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from mmalign.errors import TrainError
from mmalign.lm.quantize import is_quantized
from mmalign.train.config import TrainConfig
from mmalign.train.distributed.launch import PATIENCE, asks_to_share, is_set, num_processes
from mmalign.train.distributed.whole import all_weights, trained_weights
from mmalign.train.logprobs.head import unwrapped
from mmalign.train.output.saving import Kind
from mmalign.train.weights import media_parts, reaches_media


class Ranks:
    """This process among those that train `model`; the model has not been given to `prepare` yet."""

    def __init__(self, model: nn.Module, config: TrainConfig, output: Path) -> None:
        self._config = config
        device = next(model.parameters()).device
        is_on_cpu = device.type == "cpu"
        _take(device)
        # A step's last forward, which exchanges gradients, can be one about text alone.
        handlers = [
            DistributedDataParallelKwargs(find_unused_parameters=reaches_media(model)),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ]
        self.accelerator = Accelerator(
            cpu=is_on_cpu and not asks_to_share(),
            log_with=list(config.report_to) or None,
            project_dir=str(output),
            kwargs_handlers=handlers,
        )
        # By this transformers would read the weights of every further model in parts, on all ranks at once.
        unset_hf_deepspeed_config()
        self.index: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self._engine: Any = None
        self._refuse(model)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def shares_weights(self) -> bool:
        """Whether a rank holds a part of the weights only, so that every forward takes all ranks."""
        return self._is_fsdp or self._zero_stage == 3

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.accelerator.wait_for_everyone()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The model as it is called in training, and the optimizer; `model` itself then holds what this rank has."""
        if self._is_fsdp:
            frozen = _frozen_media_parts(model)
            for part in frozen:
                part.to(self.device)
            plugin = self.accelerator.state.fsdp_plugin
            plugin.ignored_modules = frozen
            if "FSDP_TRANSFORMER_CLS_TO_WRAP" not in os.environ:
                plugin.transformer_cls_names_to_wrap = _layers(model)
        if self._zero_stage:
            self.accelerator.state.deepspeed_plugin.deepspeed_config |= _deepspeed_config(self._config, self.count)
        prepared: tuple[Any, Any] = self.accelerator.prepare(model, optimizer)
        self._engine = prepared[0] if self._zero_stage else None
        return prepared

    def gathering(self, model: Any, *, is_last: bool) -> AbstractContextManager[Any]:
        """The block of one forward and backward of a step. DDP exchanges gradients in the step's last one only.

        Those that share them exchange every time: whole gradients are what they have no memory for.
        """
        if self._zero_stage:
            model.set_gradient_accumulation_boundary(is_last)
        return nullcontext() if is_last or self.shares_weights or self._zero_stage else self.accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that has been divided by the whole step already."""
        loss = loss * self.count  # ranks average gradients
        if self._engine is None:
            self.accelerator.backward(loss)
        else:
            self._engine.backward(loss)

    def step(self, model: nn.Module, optimizer: Any) -> float:
        """Clip, step, and clear gradients; the norm that they had. One that is not finite changes no weight.

        (With DeepSpeed, which clips and steps at once, it does: but no checkpoint is written of what it changed.)
        """
        if self._engine is not None:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        found = self.accelerator.clip_grad_norm_(model.parameters(), self._config.max_grad_norm or math.inf)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def whole_weights(self, model: nn.Module, kind: Kind) -> dict[str, Tensor] | None:
        """On the first rank what is to be saved, an adapter or the whole model, if `model` holds a part only."""
        if not self.shares_weights:
            return None
        found = (trained_weights if kind == "adapter" else all_weights)(model, kept=self.is_first)
        return found if self.is_first else None

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums over all ranks of some numbers, exchanged at once."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, reduction="sum").tolist(), strict=True))

    def has_finite_gradient(self, model: nn.Module) -> bool:
        """Whether all gradients are numbers, on all ranks."""
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
        bad = torch.stack([~grad.isfinite().all() for grad in own]).any() if own else torch.tensor(0.0)
        return not self.totals({"bad": bad.to(self.device)})["bad"]

    @property
    def _is_fsdp(self) -> bool:
        is_fsdp: Any = self.accelerator.is_fsdp2
        return bool(is_fsdp)

    @property
    def _zero_stage(self) -> int:
        plugin = self.accelerator.state.deepspeed_plugin
        return 0 if plugin is None else int(plugin.zero_stage)

    def _refuse(self, model: nn.Module) -> None:
        """Raise TrainError for what the launch file asks and cannot be had."""
        if asks_to_share() and is_quantized(model):
            raise TrainError("quantized weights are not for FSDP or DeepSpeed; take recipes/accelerate/ddp.yaml")
        kind = self.accelerator.distributed_type
        if is_set("ACCELERATE_USE_DEEPSPEED") and self._zero_stage not in (2, 3):
            raise TrainError(
                f"accelerate launch asks for DeepSpeed ZeRO-{self._zero_stage}; take "
                "recipes/accelerate/deepspeed_zero2.yaml, deepspeed_zero3.yaml, or ddp.yaml"
            )
        if is_set("ACCELERATE_USE_FSDP") and not self._is_fsdp:
            why = "fsdp_version is not 2" if kind == DistributedType.FSDP else "it needs several accelerators"
            raise TrainError(
                f"accelerate launch asks for FSDP, but {why}; take recipes/accelerate/fsdp2.yaml or ddp.yaml"
            )


def _take(device: torch.device) -> None:
    """Make an accelerator the current one, to which accelerate moves all, where there is no launch that deals them."""
    if device.type == "cuda" and num_processes() == 1:
        torch.cuda.set_device(device)


def _deepspeed_config(config: TrainConfig, count: int) -> dict[str, Any]:
    """What of DeepSpeed's settings follows from ours.

    A step of ours has as many forwards as it needs, of which the last is the boundary; the loss is that of the step, so
    DeepSpeed has nothing to divide. Its autocast is ours, with gradients exchanged in the type that they have.
    """
    half = {"enabled": config.precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": count,
        "gradient_clipping": config.max_grad_norm,
        "torch_autocast": half,
    }


def _layers(model: nn.Module) -> list[str]:
    """Classes of the layers that are gathered one at a time: those that transformers would not split, as they occur."""
    inner: Any = unwrapped(model)
    frozen = {part for root in _frozen_media_parts(model) for part in root.modules()}
    named = {type(module).__name__ for module in inner.modules() if module not in frozen}
    return sorted(named & set(inner._no_split_modules or ()))


def _frozen_media_parts(model: nn.Module) -> list[nn.Module]:
    """A tower that is not trained stays whole on every rank: small beside the rest, and each may use it on its own."""
    return [part for part in media_parts(model) if not any(weight.requires_grad for weight in part.parameters())]
