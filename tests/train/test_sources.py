"""Other models that a training reads: found, loaded and refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mmalign.errors import TrainError
from mmalign.lm.load import load_model
from mmalign.lm.spec import ModelSpec
from mmalign.objectives import LossInputs, LossOutput
from mmalign.objectives.distill import ADPA, DCKD, AlignDistil, NextQuill
from mmalign.objectives.needs import meaning
from mmalign.objectives.noisy import Selfie
from mmalign.objectives.policy import GRPO
from mmalign.objectives.tokens import SAIL, WPO
from mmalign.train.data.given import given, logit_sources, token_models
from mmalign.train.sources import Source
from tests.models import tiny, tokenizer
from tests.train.every import rows_for
from tests.train.rows import quick
from tests.train.runs import curve, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk."""
    path = tmp_path_factory.mktemp("teacher")
    teacher = tiny("llama", seed=5)
    teacher.model.save_pretrained(path)
    teacher.processor.save_pretrained(path)
    return path


def test_which_models_an_objective_reads() -> None:
    assert logit_sources(AlignDistil()) == ("dpo", "reverse_dpo")
    assert logit_sources(ADPA()) == ("teacher", "teacher_reference")
    assert logit_sources(WPO()) == ()
    assert token_models(SAIL()) == ("reward",)
    assert token_models(GRPO()) == ()


def test_what_is_given() -> None:
    needs = given(quick(models={"teacher": "x"}), ["no_history"])
    assert all(meaning(need) for need in needs)
    assert {"logits:policy", "logits:teacher", "tokens:teacher", "tokens:old_logps", "head:scalar", "memory"} <= needs
    assert "logits:reverse_dpo" not in needs
    assert NextQuill().needs - {"chosen"} <= needs
    assert not NextQuill().needs - {"chosen"} <= given(quick(), [])
    assert "logits:reference" in Selfie(extrapolation=1.0).needs & needs
    assert "logits:reference" not in given(quick(lora=None), [])


def test_a_model_in_a_folder(folder: Path) -> None:
    source = Source.load("teacher", quick(models={"teacher": str(folder)}), tiny("llama"))
    assert not source.model.training
    assert not any(weight.requires_grad for weight in source.model.parameters())
    expected = tiny("llama", seed=5).model
    assert all(
        torch.equal(found, value) for found, value in zip(source.model.parameters(), expected.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # get_peft_model below
def test_an_adapter_in_a_folder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(
        tiny("llama", seed=5).model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path)
    policy = replace(tiny("llama"), name=str(folder))
    source = Source.load("dpo", quick(models={"dpo": str(tmp_path)}), policy)
    tokens = torch.arange(12, 20)[None]
    with torch.no_grad():
        expected = adapted.eval()(input_ids=tokens).logits
        torch.testing.assert_close(source.model(input_ids=tokens).logits, expected)
        assert not torch.allclose(tiny("llama", seed=5).model(input_ids=tokens).logits, expected, atol=1e-2)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(TrainError, match=r"^train\.models\.teacher: model\.name '/nowhere': there is no such folder$"):
        Source.load("teacher", quick(models={"teacher": "/nowhere"}), tiny("llama"))


@pytest.mark.parametrize("more", [["<|new|>"], []])
def test_other_tokens(more: list[str], folder: Path) -> None:
    policy = tiny("llama")
    policy.processor = tokenizer(bos=True, more=more or ["<|a|>", "<|b|>"])
    with pytest.raises(
        TrainError, match=r"train\.models\.teacher: .*its tokens are not those of the model.* is number"
    ):
        Source.load("teacher", quick(models={"teacher": str(folder)}), policy)


def test_logits_are_cut_to_the_smallest_vocabulary(tmp_path: Path) -> None:
    """A teacher whose vocabulary is filled up further gives the distributions of the common tokens."""
    objective, rows = DCKD(), rows_for(DCKD(), tmp_path)
    losses = {}
    for extra in (0, 7):
        teacher = tiny("llama", seed=5)
        size = teacher.model.config.vocab_size
        teacher.model.resize_token_embeddings(size + extra, mean_resizing=False)
        with torch.no_grad():
            teacher.model.lm_head.weight[size:] = 3.0
        teacher.model.save_pretrained(tmp_path / f"teacher-{extra}")
        teacher.processor.save_pretrained(tmp_path / f"teacher-{extra}")
        config = quick(models={"teacher": str(tmp_path / f"teacher-{extra}")})
        trainer(tmp_path, rows, config, objective, loaded=tiny("llama"), run=f"run-{extra}").train()
        losses[extra] = curve(tmp_path, f"run-{extra}")[0]["loss"]
    assert losses[0] == pytest.approx(losses[7], rel=1e-6)


def test_a_token_reward_may_have_a_reference_of_its_own(folder: Path, tmp_path: Path) -> None:
    seen: list[LossInputs] = []

    @dataclass(frozen=True)
    class Watched(SAIL):
        def __call__(self, inputs: LossInputs, /) -> LossOutput:
            seen.append(inputs)
            return super().__call__(inputs)

    rows = rows_for(SAIL(), tmp_path)
    own = {"reward": str(folder), "reward_reference": str(folder)}
    for models in ({"reward": str(folder)}, own):
        config = quick(micro_batch_size=4, models=models)
        trainer(tmp_path, rows, config, Watched(), loaded=tiny("llama"), run=f"run-{len(models)}").train()
    first, second = (inputs.chosen.tokens("reward") for inputs in seen)
    assert first.abs().max() > 0.1
    assert not second.any()


def test_a_reference_that_no_adapter_gives(folder: Path, tmp_path: Path) -> None:
    """Where the model comes with an adapter, its distributions without it are not those of the start."""
    objective, rows = Selfie(extrapolation=1.0), rows_for(Selfie(), tmp_path)
    trainer(tmp_path, rows, quick(), loaded=tiny("llama")).train()
    base = tiny("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    spec = ModelSpec(name=str(tmp_path / "base"), adapter=str(tmp_path / "run" / "adapter"), device="cpu")
    with pytest.raises(
        TrainError, match=r"comes with an adapter, which is part of it; name the reference as train\.models"
    ):
        trainer(tmp_path, rows, quick(), objective, loaded=load_model(spec), run="again")
    named = quick(models={"reference": str(folder)})
    trainer(tmp_path, rows, named, objective, loaded=load_model(spec), run="named").train()
    with pytest.raises(TrainError, match=r"objective selfie needs what .*: logits:reference \("):
        trainer(tmp_path, rows, quick(lora=None), objective, loaded=tiny("llama"), run="full")


def test_models_that_are_not_named(tmp_path: Path) -> None:
    with pytest.raises(
        TrainError, match=r"^objective dckd needs what .* do not give: logits:teacher \(whole next-token"
    ):
        trainer(tmp_path, rows_for(DCKD(), tmp_path), quick(), DCKD(), loaded=tiny("llama"))


def test_another_teacher_is_another_run(folder: Path, tmp_path: Path) -> None:
    """Models are told apart by their weights, not by where they lie."""
    rows, place = rows_for(DCKD(), tmp_path), tmp_path / "teacher"
    shutil.copytree(folder, place)
    config = quick(models={"teacher": str(place)})
    trainer(tmp_path, rows, config, DCKD(), loaded=tiny("llama")).train()
    tiny("llama", seed=6).model.save_pretrained(place)
    with pytest.raises(TrainError, match="other pairs, another model or other settings"):
        trainer(tmp_path, rows, config, DCKD(), loaded=tiny("llama")).train()
