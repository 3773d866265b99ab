"""The model of each worker where there are several."""

from __future__ import annotations

from dataclasses import replace

from mmalign.lm.opening import open_lm
from mmalign.lm.protocol import LM
from mmalign.lm.spec import ModelSpec, ServerSpec


def open_on_machine(number: int, *, model: ModelSpec, batch_size: int, server: ServerSpec | None) -> LM:
    """The model of worker `number` on this machine; where there are GPUs, workers take them in turn."""
    return _open(_on_gpu(number, model) if loads(server) else model, batch_size, server)


def open_on_node(number: int, *, model: ModelSpec, batch_size: int, server: ServerSpec | None) -> LM:
    """The model of a Ray actor, on its own GPU or on none: Ray may leave GPUs visible that were given to others."""
    if loads(server) and (model.device == "auto" or model.device.startswith("cuda")):
        import ray

        given = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        model = replace(model, device="cuda" if given else "cpu")
    return _open(model, batch_size, server)


def loads(server: ServerSpec | None) -> bool:
    """Whether workers load weights, rather than ask a server."""
    return server is None or server.url is None


def wants_gpu(model: ModelSpec, server: ServerSpec | None) -> bool:
    """Whether the model goes to a GPU where there is one."""
    return loads(server) and model.device != "cpu"


def _on_gpu(number: int, model: ModelSpec) -> ModelSpec:
    if model.device not in ("auto", "cuda"):
        return model
    import torch

    num = torch.cuda.device_count()
    return replace(model, device=f"cuda:{number % num}") if num else model


def _open(model: ModelSpec, batch_size: int, server: ServerSpec | None) -> LM:
    if loads(server):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the run has a progress line of its own
    return open_lm(model, batch_size=batch_size, server=server)
