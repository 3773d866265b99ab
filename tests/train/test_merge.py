"""What training leaves loads in plain transformers and peft, in the type it came in; an adapter can become weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from mmalign import pipeline
from mmalign.cli import main
from mmalign.errors import TrainError
from mmalign.lm.load import load_model
from mmalign.lm.render import Renderer
from mmalign.lm.spec import ModelSpec
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow, write_pairs
from mmalign.recipe.load import load_recipe
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator
from mmalign.train.output import merging
from mmalign.train.output.merging import merge, merged
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, trainer

#: peft 0.21 asks a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits(model: Any, processor: Any, rows: Sequence[PairRow], root: Path) -> Tensor:
    inputs = Collator(Renderer(processor), root, MediaLimits())(rows).inputs
    with torch.no_grad():
        return model.eval()(**inputs).logits[inputs["attention_mask"].bool()]


def saved_base(name: str, path: Path, dtype: torch.dtype = torch.float32) -> str:
    loaded = tiny(name)
    loaded.model.to(dtype).save_pretrained(path)
    loaded.processor.save_pretrained(path)
    return str(path)


def types_in(folder: Path) -> set[str]:
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3", "smolvlm"])
def test_the_merged_model_is_the_adapted_one(name: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    base = saved_base(name, tmp_path / "base")
    result = trainer(tmp_path, rows, quick(epochs=3), loaded=load_model(ModelSpec(name=base))).train()
    merge(ModelSpec(name=base, adapter=str(result.path)), tmp_path / "merged")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(result.path))
    expected = logits(adapted, processor, rows, tmp_path)
    scale = expected.abs().max()
    assert (logits(whole, processor, rows, tmp_path) - expected).abs().max() < 1e-5 * scale
    untouched = logits(AutoModelForImageTextToText.from_pretrained(base), processor, rows, tmp_path)
    assert (untouched - expected).abs().max() > 1e-2 * scale
    assert processor.chat_template == tiny(name).processor.chat_template
    assert not list((tmp_path / "merged").glob("*.bin"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_type_of_the_checkpoint_is_kept(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4, pictures=0)
    base = saved_base("llama", tmp_path / "base", torch.bfloat16)
    result = trainer(tmp_path, rows, quick(epochs=3), loaded=load_model(ModelSpec(name=base))).train()
    merge(ModelSpec(name=base, adapter=str(result.path)), tmp_path / "merged")
    assert types_in(tmp_path / "merged") == {"BF16"}
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert whole.dtype == torch.bfloat16
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    exact = merged(PeftModel.from_pretrained(start, str(result.path)))
    for (name, found), expected in zip(whole.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found, expected.bfloat16(), atol=0, rtol=0, msg=name)
    merge(ModelSpec(name=base, adapter=str(result.path), dtype="float32"), tmp_path / "wide")
    assert types_in(tmp_path / "wide") == {"F32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_training_saves_the_type_the_model_came_in(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4, pictures=0)
    loaded = tiny("llama")
    loaded.model.to(dtype)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    made = trainer(tmp_path, rows, quick(epochs=2, lora=None), loaded=loaded)
    result = made.train()
    found = AutoModelForCausalLM.from_pretrained(result.path)
    assert found.dtype == dtype == made.model.dtype
    assert json.loads((result.path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    values = found.state_dict()
    assert all(torch.equal(values[name], value) for name, value in made.model.state_dict().items())
    assert any(not torch.equal(values[name], value) for name, value in before.items())


@pytest.mark.parametrize("lora", [LoraConfig(dropout=0.2), None], ids=["lora", "full"])
def test_stages_of_16_bits_go_on_as_if_unbroken(lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = [replace(row, stage=index % 2) for index, row in enumerate(make_rows(tmp_path, 6, pictures=0))]
    config = quick(stages="renew", batch_size=2, epochs=2, lora=lora, learning_rate=1e-4)

    def train(run: str) -> None:
        loaded = tiny("llama")
        loaded.model.to(torch.bfloat16)
        train_pairs(loaded, rows, _dpo(), config, tmp_path, tmp_path / run, quiet=True)

    train("whole")
    train("broken")
    for left in ("stage-1", "result.json", "metrics.jsonl"):
        path = tmp_path / "broken" / left
        path.rename(tmp_path / f"gone-{left}")
    train("broken")
    assert_same_curve(curve(tmp_path, "broken"), curve(tmp_path, "whole"), 1e-6)
    kind = "adapter_model" if lora else "model"
    folder = "adapter" if lora else "model"
    both = [tmp_path / run / folder / f"{kind}.safetensors" for run in ("whole", "broken")]
    assert both[0].read_bytes() == both[1].read_bytes()


def _dpo() -> Any:
    from mmalign.objectives import DPO

    return DPO()


def test_large_models_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(tmp_path, 2, pictures=0)
    base = saved_base("llama", tmp_path / "base")
    result = trainer(tmp_path, rows, quick(), loaded=load_model(ModelSpec(name=base))).train()
    kind = type(tiny("llama").model)
    plain = kind.save_pretrained
    monkeypatch.setattr(kind, "save_pretrained", lambda self, path, **more: plain(self, path, max_shard_size="100KB"))
    merge(ModelSpec(name=base, adapter=str(result.path)), tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 2, pictures=0)
    made = trainer(tmp_path, rows, quick())
    made.train()
    made.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(TrainError, match="weights are quantized, and an adapter would be lost") as caught:
        merged(made.model)
    assert "\n" not in str(caught.value)
    del made.model.config.quantization_config
    weight = next(value for name, value in made.model.named_parameters() if "q_proj.base_layer.weight" in name)
    weight.data = weight.data.to(torch.uint8)
    with pytest.raises(TrainError, match="weights are quantized"):
        merged(made.model)


# The verb ------------------------------------------------------------------------------------------------------------


def a_run(root: Path, **train: Any) -> Path:
    """A trained run directory with the embedded model."""
    out = root / "run"
    recipe = root / "recipe.yaml"
    keys = {"batch_size": 2, "micro_batch_size": 1, **train}
    recipe.write_text(
        f"method: {{name: stic}}\nobjective: {{name: dpo}}\ndata: {{scenes: 1}}\noutput: {out}\n"
        f"model: {{dtype: float32}}\ntrain: {json.dumps(keys)}\n"
    )
    loaded = load_recipe(recipe)
    with pipeline.open_run(loaded) as run:
        write_pairs(run.pairs_path(), make_rows(root, 2, pictures=0))
        pipeline.train(loaded, run)
    return out


def test_a_run_is_merged_and_keeps_its_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path)
    assert main(["merge", str(run), "--dry-run"]) == 0
    assert capsys.readouterr().out == f"would write {run / 'merged'}\n"
    assert not (run / "merged").exists()
    for _ in range(2):  # the second takes the place of the first
        assert main(["merge", str(run)]) == 0
        assert capsys.readouterr().out.endswith(f"{run / 'merged'}\n")
    assert (run / "train" / "adapter" / "adapter_model.safetensors").is_file()
    found = load_model(ModelSpec(name=str(run / "merged")))
    adapted = load_model(ModelSpec(adapter=str(run / "train" / "adapter")))
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        torch.testing.assert_close(found.model(**ids).logits, adapted.model(**ids).logits, atol=1e-5, rtol=1e-5)
    assert main(["merge", str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "config.json").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert main(["merge", str(run), "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert main(["merge", str(run), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"mmalign: {tmp_path}: exists and is no model; give --out another folder\n"


def test_the_model_that_was_trained_on_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = a_run(tmp_path), saved_base("llama", tmp_path / "base")
    recipe = run / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values["model"]["name"] = base
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    before = (tmp_path / "base" / "config.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["merge", str(run), "--out", base]) == 2
    told = capsys.readouterr().err
    assert told == f"mmalign: {base}: is the model that was trained on; give --out another folder\n"
    assert (tmp_path / "base" / "config.json").stat().st_mtime_ns == before


def test_what_cannot_be_merged_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    run = a_run(tmp_path, lora=None)
    capsys.readouterr()
    assert main(["merge", str(run)]) == 2
    told = capsys.readouterr().err
    assert "there is no adapter to merge" in told
    assert told.count("\n") == 1
    assert not (run / "merged").exists()


def test_a_merge_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(tmp_path, 2, pictures=0)
    base = saved_base("llama", tmp_path / "base")
    result = trainer(tmp_path, rows, quick(), loaded=load_model(ModelSpec(name=base))).train()

    def dying(model: Any) -> Any:
        whole = merged(model)
        monkeypatch.setattr(type(whole), "save_pretrained", _die)
        return whole

    monkeypatch.setattr(merging, "merged", dying)
    with pytest.raises(KeyboardInterrupt):
        merge(ModelSpec(name=base, adapter=str(result.path)), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def _die(self: Any, path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{")
    raise KeyboardInterrupt
