"""What the doctor really does with each package, in a child process: small, but past the import.

A trial gives what it found; `Advice` in place of it says what could be better though everything works. Whatever it
raises is why it failed.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Advice(NamedTuple):
    """A trial that went well, with something to do."""

    found: str
    advice: str


class CannotError(Exception):
    """A reason in the doctor's own words."""


Trial = Callable[[], str | Advice]


def main(names: Sequence[str], notes: str) -> None:
    """Run trials one after the other and note the outcome of each, after a line that says that there is a start."""
    with Path(notes).open("a", encoding="utf-8") as stream:
        stream.write("\n")
        stream.flush()
        for name in names:
            sys.stdout.flush()
            os.ftruncate(
                sys.stderr.fileno(), 0
            )  # both go to one file, whose last line is told where a trial is the end
            advice = ""
            try:
                made = TRIALS[name]() if name in TRIALS else _loads(name)
                is_well = True
                found, advice = made if isinstance(made, Advice) else (made, "")
            except BaseException as error:  # SystemExit from an import is a failure like any other
                is_well = False
                found = str(error) if isinstance(error, CannotError) else f"{type(error).__name__}: {error}"
            stream.write(json.dumps([name, is_well, found, advice]) + "\n")
            stream.flush()


def _loads(package: str) -> str:
    import_module(package)
    return "loads"


def _pillow() -> str:
    from PIL import Image, features

    built = {"PNG": "zlib", "JPEG": "jpg", "WEBP": "webp"}
    kinds = [kind for kind, library in built.items() if features.check(library)]
    for kind in kinds:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, kind)
        Image.open(file).convert("RGB").getpixel((3, 3))
    if len(kinds) < len(built):
        raise CannotError(f"was built for {', '.join(kinds)} only")
    return f"decodes {', '.join(kinds)}"


def _pyarrow() -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a", "b"]}), file, compression="zstd")
    if pq.read_table(pa.BufferReader(file.getvalue())).num_rows != 2:
        raise CannotError("reads other rows than it wrote")
    return "writes and reads Parquet"


def _torch() -> str:
    import torch

    if float((torch.ones(2, 3) @ torch.ones(3, 4)).sum()) != 24.0:
        raise CannotError("multiplies wrongly")
    return f"multiplies, {torch.get_num_threads()} threads"


def _torchvision() -> str:
    import torch
    from torchvision.io import decode_image, encode_png
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    decode_image(encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    return "its operators work, decodes PNG"


def _transformers() -> str:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return f"{AutoModelForImageTextToText.__name__}, {AutoProcessor.__name__} load"


def _peft() -> str:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
    return "puts an adapter on a layer"


def _accelerate() -> str:
    from accelerate import PartialState

    return f"{PartialState.__name__} loads"


def _launch() -> str:
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return "no config, so `accelerate launch` takes what its flags say"
    return f"{load_config_from_file(None).num_processes} processes by {default_config_file}"


def _embedded_model() -> str:
    import torch

    from mmalign.lm.load import load_model
    from mmalign.lm.spec import ModelSpec

    loaded = load_model(ModelSpec(device="cpu"))
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]))
    return f"{sum(weight.numel() for weight in loaded.model.parameters()) / 1e6:.1f} M parameters, runs"


def _decoder(name: str) -> Trial:
    def decodes() -> str:
        from mmalign.media.video import why_not

        if found := why_not(name).removeprefix(f"data.decoder: {name} "):
            raise CannotError(found)
        return "decodes a frame"

    return decodes


def _accelerator() -> str | Advice:
    import torch

    if not torch.cuda.is_available():
        has_card = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()
        if not has_card:
            return "none; everything runs on the CPU"
        why = "this torch is built for the CPU" if torch.version.cuda is None else "torch does not see it"
        return Advice(f"a GPU is there, but {why}", "install torch for CUDA: https://pytorch.org/get-started/locally")
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        ones = torch.ones(64, 64, device=device, dtype=dtype)
        if float((ones @ ones)[0, 0]) != 64.0:
            raise CannotError(f"cuda:{index} multiplies wrongly")
        free, total = (number / 2**30 for number in torch.cuda.mem_get_info(device))
        kind = str(dtype).removeprefix("torch.")
        found.append(f"{torch.cuda.get_device_name(device)}, {kind}, {free:.0f} of {total:.0f} GiB free")
    return "; ".join(found)


def _attention() -> str:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    query = torch.ones(1, 2, 16, 16, device=device, dtype=dtype)
    works = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel([getattr(SDPBackend, name)]):
                scaled_dot_product_attention(query, query, query, is_causal=True).sum().item()
        except (RuntimeError, AttributeError):
            continue
        works.append(name.removesuffix("_ATTENTION").lower())
    if not works:
        raise CannotError(f"scaled_dot_product_attention has no kernel that runs on {device}")
    return f"sdpa on {device} by {', '.join(works)}"


def _flash() -> str:
    import torch

    if not torch.cuda.is_available():
        raise CannotError("needs a GPU")
    flash_attn_func = import_module("flash_attn").flash_attn_func
    query = torch.ones(1, 8, 2, 64, device="cuda", dtype=torch.bfloat16)
    flash_attn_func(query, query, query, causal=True).sum().item()
    return "runs"


def _flex() -> str:
    import torch

    if not torch.cuda.is_available():
        raise CannotError("needs a GPU")
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.ones(1, 2, 128, 64, device="cuda", dtype=torch.bfloat16)
    torch.compile(flex_attention)(query, query, query).sum().item()
    return "compiles and runs"


def _bitsandbytes() -> str:
    import torch

    functional = import_module("bitsandbytes.functional")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    functional.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
    return f"quantizes to nf4 on {device}"


def _ray() -> str:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        if ray.get(ray.remote(lambda: os.getpid()).remote()) == os.getpid():
            raise CannotError("a task ran in this very process")
    finally:
        ray.shutdown()
    return "starts a cluster here and runs a task"


def _tensorboard() -> str:
    from torch.utils.tensorboard import SummaryWriter

    return f"{SummaryWriter.__name__} loads"


TRIALS: dict[str, Trial] = {
    "pillow": _pillow,
    "pyarrow": _pyarrow,
    "torch": _torch,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "peft": _peft,
    "accelerate": _accelerate,
    "accelerate launch": _launch,
    "embedded model": _embedded_model,
    "video by pyav": _decoder("pyav"),
    "video by decord": _decoder("decord"),
    "video by torchcodec": _decoder("torchcodec"),
    "accelerator": _accelerator,
    "attention": _attention,
    "flash_attention_2": _flash,
    "flex_attention": _flex,
    "bitsandbytes": _bitsandbytes,
    "ray": _ray,
    "tensorboard": _tensorboard,
}
