"""Trials that find fault with packages which import well, and advice for those that work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.cli.doctor import trials
from mmalign.cli.doctor.trials import Advice, CannotError


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    for built, why in ((None, "this torch is built for the CPU"), ("13.0", "torch does not see it")):
        monkeypatch.setattr(torch.version, "cuda", built)
        told = trials._accelerator()
        assert isinstance(told, Advice)
        assert told.found == f"a GPU is there, but {why}"
        assert "install torch for CUDA" in told.advice
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert trials._accelerator() == "none; everything runs on the CPU"


def test_a_gpu_that_works_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones
    on_cpu: dict[str, Any] = {"factor": 1.0}
    monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size, dtype=dtype) * on_cpu["factor"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert trials._accelerator() == "Card 0, bfloat16, 3 of 80 GiB free; Card 1, bfloat16, 3 of 80 GiB free"
    on_cpu["factor"] = 2.0
    with pytest.raises(CannotError, match="cuda:0 multiplies wrongly"):
        trials._accelerator()


def test_kernels_that_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kernel in (trials._flash, trials._flex):
        with pytest.raises(CannotError, match="needs a GPU"):
            kernel()


def test_no_attention_kernel_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    with pytest.raises(CannotError, match="no kernel that runs on"):
        trials._attention()


def test_a_pillow_without_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda library: library != "webp")
    with pytest.raises(CannotError, match="was built for PNG, JPEG only"):
        trials._pillow()


def test_a_decoder_that_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.media.video.why_not", lambda name: f"data.decoder: {name} is not installed")
    with pytest.raises(CannotError, match=r"^is not installed$"):
        trials.TRIALS["video by torchcodec"]()


def test_notes_are_kept_up_to_where_a_child_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> str:
        raise SystemExit(3)

    cannot = CannotError("no\nmore")

    def fail() -> str:
        raise cannot

    monkeypatch.setattr("os.ftruncate", lambda *given: None)
    made = {"a": lambda: "well", "b": lambda: Advice("well", "do"), "c": leave, "d": fail}
    monkeypatch.setattr(trials, "TRIALS", made)
    trials.main(["a", "b", "c", "d", "json", "no_such_package"], str(tmp_path / "notes"))
    start, *lines = (tmp_path / "notes").read_text().splitlines()
    assert start == ""
    assert [json.loads(line) for line in lines] == [
        ["a", True, "well", ""],
        ["b", True, "well", "do"],
        ["c", False, "SystemExit: 3", ""],
        ["d", False, "no\nmore", ""],
        ["json", True, "loads", ""],
        ["no_such_package", False, "ModuleNotFoundError: No module named 'no_such_package'", ""],
    ]
