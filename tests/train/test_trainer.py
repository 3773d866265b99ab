"""The whole loop on tiny models: it learns, it is exact, it goes on where it was, and it says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, SFT, LossInputs, LossOutput, Need, Objective, find_objective
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.output.saving import TrainResult
from tests.models import READING, SEEING, tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, numbers, trainer

#: peft 0.21 asks a property that transformers 5.23 has renamed.
PEFT_READS_AN_OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# It learns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", *SEEING])
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_eight_pairs_are_learned(name: str, lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 8, pictures=0 if name in READING else 1)
    result = trainer(tmp_path, rows, quick(epochs=6, lora=lora), loaded=tiny(name)).train()
    lines = curve(tmp_path)
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4), "before the first step policy and reference agree"
    assert lines[-1]["loss"] < 0.25
    assert lines[-1]["accuracy"] == 1.0
    assert lines[-1]["margin"] > lines[5]["margin"] > 0.1
    assert lines[-1]["chosen_reward"] > 0 > lines[-1]["rejected_reward"]
    assert result == TrainResult(
        path=tmp_path / "run" / ("model" if lora is None else "adapter"),
        kind="model" if lora is None else "adapter",
        num_pairs=8,
        num_dropped=0,
        steps=12,
        last=lines[-1],
    )


def test_sft_raises_the_chosen_side_only_by_likelihood(tmp_path: Path) -> None:
    trainer(tmp_path, make_rows(tmp_path, 4), quick(epochs=8), SFT()).train()
    lines = curve(tmp_path)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["chosen_logps"] > lines[0]["chosen_logps"]
    assert "margin" not in lines[0]


@pytest.mark.parametrize("name", SEEING)
def test_only_the_named_weights_change(name: str, tmp_path: Path) -> None:
    before = tiny(name).model.state_dict()
    loaded = tiny(name)
    trainer(tmp_path, make_rows(tmp_path, 4), quick(lora=None), loaded=loaded).train()
    moved = {key for key, value in loaded.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("layers.0.self_attn.q_proj" in key for key in moved)
    assert not any("vis" in key or "projector" in key for key in moved)

    adapted = trainer(tmp_path, make_rows(tmp_path, 4), quick(), loaded=tiny(name), run="lora")
    adapted.train()
    for key, value in adapted.model.state_dict().items():
        if "lora_" in key:
            assert value.abs().sum() > 0, "the second matrix starts at 0"
        else:
            plain = key.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, before[plain])


def test_weights_of_zero_teach_nothing(tmp_path: Path) -> None:
    before = tiny("qwen3-vl").model.state_dict()
    loaded = tiny("qwen3-vl")
    trainer(tmp_path, make_rows(tmp_path, 4, weight=0.0), quick(lora=None), loaded=loaded).train()
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())


def test_a_wrong_label_probability_reverses_the_lesson(tmp_path: Path) -> None:
    trainer(tmp_path, make_rows(tmp_path, 4, p=0.0), quick(epochs=4)).train()
    assert curve(tmp_path)[-1]["margin"] < -0.1


# It is exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [DPO(), DPO(sft_weight=0.1, nll_reduction="token_mean"), SFT()], ids=repr)
def test_micro_batches_are_the_big_batch(objective: Objective, tmp_path: Path) -> None:
    rows = [replace(row, weight=0.5 + index) for index, row in enumerate(make_rows(tmp_path, 6))]
    for micro in (1, 2, 3, 5):
        config = quick(micro_batch_size=micro, batch_size=5, epochs=2, lora=None, learning_rate=1e-4)
        trainer(tmp_path, rows, config, objective, run=f"micro-{micro}").train()
    for micro in (1, 2, 3):
        # Summed log-probs near -80 have steps of 8e-6 in float32; a wrong average would be off by tenths.
        assert_same_curve(numbers(tmp_path, f"micro-{micro}"), numbers(tmp_path, "micro-5"), 1e-4)
        for key in ("loss", "grad_norm"):
            assert [line[key] for line in curve(tmp_path, f"micro-{micro}")] == pytest.approx(
                [line[key] for line in curve(tmp_path, "micro-5")], rel=1e-5, abs=1e-6
            )
    assert [line["epoch"] for line in curve(tmp_path, "micro-5")] == [0.5, 1.0, 1.5, 2.0]


def test_the_step_is_the_gradient_of_the_mean_loss(tmp_path: Path) -> None:
    """One AdamW-free check: the logged gradient norm is that of the mean over all pairs, computed by hand."""
    rows = [replace(row, weight=1.0 + index) for index, row in enumerate(make_rows(tmp_path, 3))]
    trainer(tmp_path, rows, quick(micro_batch_size=1, max_grad_norm=0.0, lora=None, freeze_vision=False)).train()
    loaded = tiny("qwen3-vl")
    loaded.model.requires_grad_(True)
    batch = Collator(Renderer(loaded.processor), tmp_path, MediaLimits())(rows)
    policy = completion_logps(loaded.model, batch).sum(-1)
    margin = 0.1 * ((policy - policy.detach())[:3] - (policy - policy.detach())[3:])
    loss = -(torch.nn.functional.logsigmoid(margin) * torch.tensor([1.0, 2.0, 3.0])).sum() / 3
    loss.backward()
    gradients = [parameter.grad for parameter in loaded.model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert curve(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert curve(tmp_path)[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_adapter_off_and_stored_reference_agree(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    trainer(tmp_path, rows, quick(epochs=4)).train()
    trainer(tmp_path, rows, quick(epochs=4, precompute_reference=False), run="off").train()
    assert_same_curve(curve(tmp_path, "off"), curve(tmp_path), 1e-5)
    assert list((tmp_path / "run" / "reference").rglob("part-*"))


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    for lora in (LoraConfig(), None):
        for on in (False, True):
            config = quick(epochs=2, gradient_checkpointing=on, lora=lora, learning_rate=1e-4)
            trainer(tmp_path, rows, config, run=f"{lora is None}-{on}").train()
        assert_same_curve(curve(tmp_path, f"{lora is None}-True"), curve(tmp_path, f"{lora is None}-False"), 1e-5)


def test_bf16_follows_fp32(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    trainer(tmp_path, rows, quick(epochs=6)).train()
    trainer(tmp_path, rows, quick(epochs=6, precision="bf16"), run="bf16").train()
    found, expected = curve(tmp_path, "bf16")[-1], curve(tmp_path)[-1]
    assert found != expected
    assert found["loss"] == pytest.approx(expected["loss"], abs=0.1)
    assert found["accuracy"] == 1.0


def test_same_seed_same_run_other_seed_other_order(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path, rows, quick(seed=seed, batch_size=2), run=run).train()
    assert curve(tmp_path, "a") == curve(tmp_path, "b")
    assert curve(tmp_path, "a") != curve(tmp_path, "c")


# What it leaves -------------------------------------------------------------------------------------------------------


def scores(model: Any, processor: Any, rows: Sequence[PairRow], root: Path) -> Tensor:
    with torch.no_grad():
        return completion_logps(model.eval(), Collator(Renderer(processor), root, MediaLimits())(rows))


@PEFT_READS_AN_OLD_NAME
@pytest.mark.parametrize("name", SEEING)
def test_the_adapter_loads_in_plain_peft(name: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    tiny(name).model.save_pretrained(tmp_path / "base")
    made = trainer(tmp_path, rows, quick(epochs=3), loaded=tiny(name))
    result = made.train()
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, str(result.path))
    processor = AutoProcessor.from_pretrained(result.path)
    expected = scores(made.model, made.processor, rows, tmp_path)
    torch.testing.assert_close(scores(loaded, processor, rows, tmp_path), expected, atol=1e-4, rtol=1e-5)
    untouched = scores(tiny(name).model, tiny(name).processor, rows, tmp_path)
    assert (expected - untouched).abs().max() > 0.1
    assert not list(result.path.glob("*.bin"))


@pytest.mark.parametrize("name", SEEING)
def test_the_model_loads_in_plain_transformers(name: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    made = trainer(tmp_path, rows, quick(epochs=3, lora=None), loaded=tiny(name))
    result = made.train()
    loaded = AutoModelForImageTextToText.from_pretrained(result.path)
    processor = AutoProcessor.from_pretrained(result.path)
    expected = scores(made.model, made.processor, rows, tmp_path)
    torch.testing.assert_close(scores(loaded, processor, rows, tmp_path), expected, atol=1e-4, rtol=1e-5)


@PEFT_READS_AN_OLD_NAME
def test_a_second_round_goes_on_with_the_adapter(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    first = trainer(tmp_path, rows, quick(epochs=3)).train()
    for run, lora in (("more", LoraConfig()), ("merged", None)):
        loaded = tiny("qwen3-vl")
        loaded.model = PeftModel.from_pretrained(loaded.model, str(first.path)).requires_grad_(False)
        start = scores(loaded.model, loaded.processor, rows, tmp_path)
        second = trainer(tmp_path, rows, quick(epochs=3, lora=lora), loaded=loaded, run=run)
        second.train()
        lines = curve(tmp_path, run)
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4), "the reference is the start of the round"
        assert lines[-1]["loss"] < 0.6
        assert (scores(second.model, loaded.processor, rows, tmp_path) - start).abs().max() > 0.1
    loaded = tiny("qwen3-vl")
    loaded.model = PeftModel.from_pretrained(loaded.model, str(first.path))
    with pytest.raises(TrainError, match="precompute_reference is false, but the model comes with an adapter"):
        trainer(tmp_path, rows, quick(precompute_reference=False), loaded=loaded, run="off")


# What is wrong --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Broken:
    """An objective whose loss is no number for one pair of a batch, or whose gradient is none."""

    name: ClassVar[str] = "broken"
    in_gradient: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        loss = inputs.chosen.token_logps.sum(-1)
        if self.in_gradient:
            return LossOutput(loss=(loss - loss.detach()).abs().sqrt())
        return LossOutput(loss=torch.where(torch.arange(len(loss)) == 1, torch.nan, loss))


def test_a_loss_that_is_no_number_names_its_pair(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 2)
    with pytest.raises(TrainError, match=r"the loss is not finite at pair s[01]#0\.0; "):
        trainer(tmp_path, rows, quick(batch_size=2), Broken()).train()
    with pytest.raises(TrainError, match=r"the gradient of pair s[01]#0\.0, s[01]#0\.0 is not finite"):
        trainer(tmp_path, rows, quick(batch_size=2), Broken(in_gradient=True), run="gradient").train()
    assert curve(tmp_path) == curve(tmp_path, "gradient") == []


def test_long_pairs_are_dropped_and_counted_or_refused(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    rows[2] = replace(rows[2], rejected="There is a crab. " * 40)
    result = trainer(tmp_path, rows, quick(max_length=100)).train()
    assert (result.num_pairs, result.num_dropped) == (3, 1)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_dropped"] == 1
    with pytest.raises(
        TrainError, match=r"1 of 4 pairs are longer than train.max_length 100, pair s2#0\.0 has \d+ tok"
    ):
        trainer(tmp_path, rows, quick(max_length=100, overlong="error"), run="error").train()
    with pytest.raises(TrainError, match="4 of 4 pairs are longer"):
        trainer(tmp_path, rows, quick(max_length=5), run="all").train()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no pairs to train on"):
        trainer(tmp_path, [], quick())


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"train\.report_to: clipboard is no tracker"):
        trainer(tmp_path, make_rows(tmp_path, 1), quick(report_to=("clipboard",)))


def test_an_objective_that_cannot_be_fed_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"objective tpo needs .* side:gold"):
        trainer(tmp_path, make_rows(tmp_path, 1), quick(), find_objective("tpo")())
