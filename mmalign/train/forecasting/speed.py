"""How fast a device is, measured in about a second: what turns counted operations into an estimate of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.train.forecasting.ghost import Ghosts

#: Seconds that each of the three measurements may take.
MEASURED_S = 0.25


@dataclass(frozen=True, slots=True)
class Speed:
    """`flops` are products per second (a multiplication and an addition are two), `moved` bytes read and written per
    second by operations that do little else, `call` the seconds that an operation takes however small it is.
    """

    flops: float
    moved: float
    call: float

    def seconds(self, flops: float, moved: float, calls: float) -> float:
        """The time of so much work, as if one part came after another."""
        return flops / self.flops + moved / self.moved + calls * self.call


def measured(device: torch.device, dtype: torch.dtype, moved: float) -> Speed:
    """The speed of `device` as it is now, for products of `dtype` and operations that move about so many bytes each.

    What fits into a cache moves many times faster than what does not.
    """
    is_cpu = device.type == "cpu"
    size, most = (512, 1 << 24) if is_cpu else (4096, 1 << 28)
    length = int(min(max(moved / 8, 16), most))
    times = max(1, (1 << 14) // length)  # of what is done in no time, many make one measurement
    left, row = torch.randn(size, size, device=device, dtype=dtype), torch.randn(length, device=device)
    with torch.no_grad():
        product = _seconds(lambda: left @ left, device)
        alone = _seconds(lambda: row[:1] + 1, device)
        copy = _seconds(lambda: [row + 1 for _ in range(times)], device) / times
    copy = max(copy - alone, copy / 10)
    return Speed(2 * size**3 / product, 2 * length * row.element_size() / copy, _call(device))


def _call(device: torch.device) -> float:
    """Seconds per operation of a model that has next to nothing to compute, forward and backward."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(config).to(device)
    tokens = torch.zeros(1, 4, dtype=torch.long, device=device)

    def step() -> None:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()

    counted = Ghosts(device)
    with counted:
        step()
    return _seconds(step, device) / counted.calls


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The mean time of some work, after once without a clock; waits for other programs are in it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    count, begin = 0, time.perf_counter()
    while not count or time.perf_counter() - begin < MEASURED_S:
        work()
        wait()
        count += 1
    return (time.perf_counter() - begin) / count
