"""Adapters on weights of 4 bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from mmalign.errors import ModelError, TrainError
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.spec import ModelSpec
from mmalign.train.output.merging import merge
from tests.train.rows import make_rows, quick
from tests.train.runs import curve, trainer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
#: What bitsandbytes and peft say of themselves.
quiet = pytest.mark.filterwarnings("ignore")


def quantized(adapter: str | None = None) -> Loaded:
    """The embedded model: bitsandbytes wants layers of at least 64 inputs."""
    return load_model(ModelSpec(device="cpu", quantization="nf4", adapter=adapter))


@quiet
@needs_bitsandbytes
def test_an_adapter_is_trained_on_quantized_layers(tmp_path: Path) -> None:
    loaded = quantized()
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    packed = {name for name, weight in before.items() if not weight.is_floating_point()}
    assert packed
    assert all("language_model.layers" in name for name in packed), "tower, projector and head keep their type"
    rows = make_rows(tmp_path, 4)
    config = quick(epochs=8, learning_rate=1e-2, gradient_checkpointing=True, checkpoint_every_steps=4)
    made = trainer(tmp_path, rows, config, loaded=loaded).train()
    assert curve(tmp_path)[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert made.last["loss"] < 0.6
    for name, weight in loaded.model.named_parameters():
        if (kept := before.get(name.replace(".base_layer", ""))) is not None:
            assert torch.equal(weight, kept), name
    again = quantized(adapter=str(made.path))
    assert again.model.peft_config["default"].r == 16
    with pytest.raises(TrainError, match="quantized"):
        merge(ModelSpec(quantization="nf4", adapter=str(made.path)), tmp_path / "merged")


@quiet
@needs_bitsandbytes
def test_what_quantized_weights_cannot_do(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    with pytest.raises(TrainError, match=r"train\.lora is null, but the model's weights are quantized"):
        trainer(tmp_path, rows, quick(lora=None), loaded=quantized())


def test_without_bitsandbytes_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"model.quantization nf4: bitsandbytes is not installed: pip install"):
        quantized()
