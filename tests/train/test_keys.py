"""Names of what runs depend on: nothing that changes a model's numbers is left out of its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mmalign.train.cache import keys
from mmalign.train.cache.keys import weights_key
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import trainer


#: peft 0.21 asks a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_settings_and_scales_change_the_key() -> None:
    def adapted(alpha: float) -> nn.Module:
        torch.manual_seed(0)
        settings = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(tiny("llama").model, settings)

    assert weights_key(adapted(8)) == weights_key(adapted(8))
    assert weights_key(adapted(8)) != weights_key(adapted(16)), "the same weights, added twice as strongly"
    before, model = weights_key(tiny("qwen2.5-vl").model), tiny("qwen2.5-vl").model
    model.config._name_or_path, model.config.dtype = "elsewhere", torch.bfloat16
    assert weights_key(model) == before, "where it lies, and what the weights themselves tell"
    model.config.text_config.rope_parameters["rope_theta"] *= 2
    assert weights_key(model) != before


def test_what_another_version_computed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, config = make_rows(tmp_path, 2, pictures=0), quick(reference_cache=tmp_path / "kept")
    for run, own, num_parts in (("a", "1", 1), ("b", "1", 1), ("c", "2", 2)):
        monkeypatch.setattr(keys, "version", lambda name, own=own: own)
        trainer(tmp_path, rows, config, run=run).train()
        assert len(list((tmp_path / "kept").rglob("part-*"))) == num_parts


def test_a_home_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path, make_rows(tmp_path, 2, pictures=0), quick(reference_cache=Path("~/kept"))).train()
    assert list((tmp_path / "home" / "kept").rglob("part-*"))
    assert not (tmp_path / "~").exists()
