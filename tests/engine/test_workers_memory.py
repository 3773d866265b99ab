"""A model that does not fit is a user's mistake of one line, in this process and in a worker."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmalign.engine import models
from mmalign.errors import ModelError
from mmalign.lm import load
from mmalign.lm.spec import ModelSpec


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_memory_that_runs_out_while_loading_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(
        ModelError, match=r"model.name 'tiny': memory ran out while it was loaded; (CUDA out|MemoryError)"
    ):
        load.load_model(ModelSpec(device="cpu"))


@pytest.mark.parametrize(
    ("num", "device", "taken"),
    [(0, "auto", "auto"), (2, "auto", "cuda:1"), (4, "cuda", "cuda:3"), (4, "cuda:1", "cuda:1"), (4, "cpu", "cpu")],
)
def test_workers_take_the_gpus_of_a_machine_in_turn(
    monkeypatch: pytest.MonkeyPatch, num: int, device: str, taken: str
) -> None:
    opened: list[ModelSpec] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
    monkeypatch.setattr(models, "open_lm", lambda model, **_: opened.append(model))
    models.open_on_machine(3, model=ModelSpec(device=device), batch_size=1, server=None)
    assert [spec.device for spec in opened] == [taken]
