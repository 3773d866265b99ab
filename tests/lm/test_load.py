"""Loading from folders: what is accepted, what is refused, and in what words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.errors import ModelError
from mmalign.lm.load import load_model, load_renderer
from mmalign.lm.local import LocalLM
from mmalign.lm.spec import ModelSpec
from mmalign.types import Chat, Message, Sampling
from tests.models import ALL, SEEING, picture, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ALL:
        folder = tmp_path_factory.mktemp(name.replace(".", "-"))
        loaded = tiny(name)
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        made[name] = folder
    return made


def chat(name: str) -> Chat:
    return Chat((Message("user", (*((picture(),) if name in SEEING else ()), "What is it?")),))


@pytest.mark.parametrize("name", ALL)
async def test_a_saved_model_comes_back_the_same(name: str, folders: dict[str, Path]) -> None:
    answers = []
    for loaded in (tiny(name), load_model(ModelSpec(name=str(folders[name]), device="cpu"))):
        assert not loaded.model.training
        assert not any(p.requires_grad for p in loaded.model.parameters())
        lm = LocalLM(loaded)
        answers.append(await lm.generate(chat(name), Sampling(max_new_tokens=15), seed=0))
        await lm.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
def test_the_processor_alone_renders_the_same(name: str, folders: dict[str, Path]) -> None:

    spec = ModelSpec(name=str(folders[name]))
    assert load_renderer(spec).prompt(chat(name)) == tiny(name).renderer.prompt(chat(name))


def test_dtype_is_as_asked(folders: dict[str, Path]) -> None:
    name = str(folders["llama"])
    assert load_model(ModelSpec(name=name, device="cpu")).model.dtype == torch.float32
    assert load_model(ModelSpec(name=name, device="cpu", dtype="bfloat16")).model.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # get_peft_model below
@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
async def test_an_adapter_goes_on_top(folders: dict[str, Path], tmp_path: Path, task: str | None) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(ModelSpec(name=str(folders["qwen3-vl"]), device="cpu"))
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=4, task_type=task)
    adapted = get_peft_model(base.model, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    spec = ModelSpec(name=str(folders["qwen3-vl"]), device="cpu", adapter=str(tmp_path / "adapter"))
    loaded = load_model(spec)
    assert loaded.name.endswith(f"+{tmp_path / 'adapter'}")
    plain, tuned = LocalLM(tiny("qwen3-vl")), LocalLM(loaded)
    asked = chat("qwen3-vl")
    before, after = [(await lm.score(asked, ["A fish."]))[0] for lm in (plain, tuned)]
    text = await tuned.generate(asked, Sampling(max_new_tokens=5), seed=0)
    assert text.num_tokens == 5
    assert loaded.model.get_base_model().generation_config.max_new_tokens is None
    assert before.tokens == after.tokens
    assert abs(before.total - after.total) > 1e-3
    for lm in (plain, tuned):
        await lm.close()


def refused(spec: ModelSpec) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_name_key_value_and_remedy(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "there is no such folder" in refused(ModelSpec(name=str(tmp_path / "nothing")))
    assert "there is no such folder" in refused(ModelSpec(name="./nothing"))
    assert "set model.download: true" in refused(ModelSpec(name="nobody/no-such-model"))
    assert "holds no config.json" in refused(ModelSpec(name=str(tmp_path)))
    good = str(folders["llama"])
    assert "model.device 'gpu'" in refused(ModelSpec(name=good, device="gpu"))
    assert "model.device 'cuda:99'" in refused(ModelSpec(name=good, device="cuda:99"))
    assert "model.dtype 'float8'" in refused(ModelSpec(name=good, dtype="float8"))  # type: ignore[arg-type]
    assert "holds no adapter_config.json" in refused(ModelSpec(name=good, device="cpu", adapter=str(tmp_path)))


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    assert "ViTConfig is neither" in refused(ModelSpec(name=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made-up"}), encoding="utf-8")
    assert "made-up" in refused(ModelSpec(name=str(tmp_path)))


def test_pickled_weights_are_not_opened(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llama"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(tiny("llama").model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "no .safetensors weights" in refused(ModelSpec(name=str(tmp_path), device="cpu"))


def test_code_in_a_checkpoint_does_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "their-own"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    refused(ModelSpec(name=str(tmp_path), device="cpu"))


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_damaged_folders_are_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    whole = (folders["llama"] / "model.safetensors").read_bytes()
    for number, content in enumerate((pointer, whole[:999], whole[:-999], b"")):
        folder = copied(folders["llama"], tmp_path / str(number))
        (folder / "model.safetensors").write_bytes(content)
        told = refused(ModelSpec(name=str(folder), device="cpu"))
        assert told.startswith(f"model.name '{folder}': its weights cannot be read (")
        assert told.endswith("); they are cut off, or Git LFS pointers: fetch them again")
    folder = copied(folders["llama"], tmp_path / "empty tokenizer")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "KeyError: " in refused(ModelSpec(name=str(folder), device="cpu"))
    folder = copied(folders["llama"], tmp_path / "text for a number")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "many"}), encoding="utf-8")
    assert "hidden_size" in refused(ModelSpec(name=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "NOPE"}, "does not fit the model: KeyError: 'NOPE'"),
        ([], "does not fit the model: TypeError: "),
        ({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}, "its weights cannot be read ("),
    ],
)
def test_damaged_adapters_are_told_in_one_line(
    config: Any, told: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    assert told in refused(ModelSpec(name=str(folders["llama"]), device="cpu", adapter=str(tmp_path)))
