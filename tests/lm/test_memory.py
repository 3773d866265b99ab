"""Memory that ran out is told from other failures, whoever says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmalign.lm.memory import is_out_of_memory

ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79 GiB in all."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 160000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 160000000000 bytes."),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: MemoryError(),
]


def test_what_an_error_is_about_is_told_by_its_text() -> None:
    assert all(is_out_of_memory(make()) for make in ERRORS)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_torch_itself_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
