"""Stage after stage: order, renewed references, one result in the end, and going on after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText

from mmalign.errors import MediaError, TrainError
from mmalign.lm.load import Loaded
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, RRPO, SFT, Objective
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.data.collate import Collator
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.output.saving import TrainResult
from mmalign.train.stages import train_stages
from mmalign.train.weights import merged_exactly
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve
from tests.train.seen import trained
from tests.train.test_resume import Stopping

TEMPLE = DPO(sft_weight=1.0, nll_reduction="pooled")
#: peft 0.21 asks a property that transformers 5.23 has renamed.
PEFT_READS_AN_OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BOTH = pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])


def staged(root: Path, count: int = 6, stages: int = 3) -> list[PairRow]:
    """Pairs in which the hardest stage comes first."""
    rows = make_rows(root, count)
    return [replace(row, stage=stages - 1 - index % stages) for index, row in enumerate(rows)]


def run(
    root: Path,
    rows: Sequence[PairRow],
    config: TrainConfig,
    objective: Objective = TEMPLE,
    *,
    loaded: Loaded | None = None,
    name: str = "run",
) -> TrainResult:
    loaded = loaded or tiny("qwen3-vl")
    return train_stages(loaded, rows, objective, replace(config, stages="renew"), root, root / name, quiet=True)


def scores(model: Any, rows: Sequence[PairRow], root: Path) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(model.eval(), Collator(Renderer(tiny("qwen3-vl").processor), root, MediaLimits())(rows))


@BOTH
def test_every_stage_starts_at_its_own_reference(lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = staged(tmp_path)
    result = run(tmp_path, rows, quick(epochs=3, batch_size=2, lora=lora, stages="renew", sft_after_stages=True))
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert [line["stage"] for line in lines] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 9
    assert [lines[index]["epoch"] for index in (2, 5, 8, 17)] == [3.0, 6.0, 9.0, 12.0]
    for first in (0, 3, 6):
        assert lines[first]["margin"] == pytest.approx(0.0, abs=1e-4)
        assert lines[first]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
        pooled = lines[first]["loss"] - lines[first]["preference_loss"]
        tokens = -lines[first]["chosen_logps"] * 2
        assert 0 < pooled < tokens
        assert lines[first + 2]["margin"] > 0.05
    assert lines[9]["chosen_logps"] > lines[0]["chosen_logps"]
    assert (result.num_pairs, result.num_dropped, result.steps) == (6, 0, 18)
    assert result.last == lines[-1]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 18


@PEFT_READS_AN_OLD_NAME
def test_the_adapters_of_all_stages_are_one_for_the_first_model(tmp_path: Path) -> None:
    rows = staged(tmp_path)
    tiny("qwen3-vl").model.save_pretrained(tmp_path / "base")
    loaded = tiny("qwen3-vl")
    result = run(tmp_path, rows, quick(epochs=3, batch_size=2), loaded=loaded)
    assert result.path == tmp_path / "run" / "adapter"
    assert sorted(path.name for path in result.path.iterdir() if path.is_dir()) == []
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    joined = PeftModel.from_pretrained(base, str(result.path))
    assert joined.peft_config["default"].r == 3 * LoraConfig().rank
    expected = tiny("qwen3-vl").model
    for stage in range(3):
        adapter = tmp_path / "run" / f"stage-{stage}" / "adapter"
        expected = PeftModel.from_pretrained(expected, str(adapter)).merge_and_unload()
    torch.testing.assert_close(scores(joined, rows, tmp_path), scores(expected, rows, tmp_path), atol=1e-4, rtol=1e-5)
    assert (scores(expected, rows, tmp_path) - scores(tiny("qwen3-vl").model, rows, tmp_path)).abs().max() > 0.1


def test_no_digit_of_a_stage_is_lost_in_weights_of_16_bits() -> None:
    loaded = tiny("llama")
    loaded.model.to(torch.bfloat16)
    model = trained(loaded, precision="bf16")
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(1e-3)  # as at small learning rates: less than half of the weights' last digit
    expected = [layer.get_base_layer().weight + layer.get_delta_weight("default") for layer in layers]
    first = layers[0].get_base_layer().weight
    assert (expected[0].bfloat16() == first).any(), "rounding would lose it"
    merged_exactly(model)
    for layer, weight in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.get_base_layer().weight.data, weight.data, atol=1e-8, rtol=1e-6)


def test_stages_of_a_model_of_16_bits_go_on_from_one_another(tmp_path: Path) -> None:
    rows, loaded = staged(tmp_path, 4, 2), tiny("qwen3-vl")
    loaded.model.to(torch.bfloat16)
    result = run(tmp_path, rows, quick(precision="bf16", learning_rate=1e-3), DPO(), loaded=loaded)
    first = next(line for line in curve(tmp_path) if line["stage"] == 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=0.02), "the start of the stage is its reference"
    assert result.kind == "adapter"


def test_the_model_of_the_last_stage_is_the_result(tmp_path: Path) -> None:
    rows = staged(tmp_path)
    result = run(tmp_path, rows, quick(epochs=2, batch_size=2, lora=None))
    assert (result.kind, result.path) == ("model", tmp_path / "run" / "model")
    found = AutoModelForImageTextToText.from_pretrained(result.path)
    last = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "stage-2" / "model")
    first = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "stage-0" / "model")
    assert torch.equal(scores(found, rows, tmp_path), scores(last, rows, tmp_path))
    assert not torch.equal(scores(found, rows, tmp_path), scores(first, rows, tmp_path))


@BOTH
@pytest.mark.parametrize(("killed_at", "left"), [(3, 7), (4, 6), (9, 1)])
def test_a_killed_run_goes_on_in_its_stage(killed_at: int, left: int, lora: LoraConfig | None, tmp_path: Path) -> None:
    """Three stages of three steps, a checkpoint after every second."""
    rows = staged(tmp_path)
    config = quick(epochs=3, batch_size=2, lora=lora, checkpoint_every_steps=2)
    run(tmp_path, rows, config, Stopping(calls=[]), name="whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rows, config, Stopping(calls=[], at=killed_at))
    assert not (tmp_path / "run" / "result.json").exists()
    calls: list[int] = []
    result = run(tmp_path, rows, config, Stopping(calls=calls))
    assert len(calls) == left
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-5)
    stamp = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert run(tmp_path, rows, config, Stopping(calls=[], at=1)) == result
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == stamp


def test_another_run_is_refused(tmp_path: Path) -> None:
    rows = staged(tmp_path)
    run(tmp_path, rows, quick(batch_size=2))
    with pytest.raises(TrainError, match="other pairs, another model or other settings"):
        run(tmp_path, rows, quick(batch_size=2, learning_rate=0.5))
    with pytest.raises(TrainError, match=r"run/result\.json: is the result of other pairs"):
        run(tmp_path, [row for row in rows if row.stage < 2], quick(batch_size=2))
    with pytest.raises(TrainError, match="no pairs"):
        run(tmp_path, [], quick())


def test_an_objective_with_divergence_renews_its_reference_too(tmp_path: Path) -> None:
    for lora in (LoraConfig(), None):
        name = f"{lora is None}"
        run(tmp_path, staged(tmp_path), quick(epochs=3, batch_size=2, lora=lora), RRPO(), name=name)
        lines = curve(tmp_path, name)
        for first in (0, 3, 6):
            assert lines[first]["kl"] == pytest.approx(0.0, abs=1e-4)
            assert lines[first]["loss"] == pytest.approx(math.log(2), abs=1e-4)
            assert lines[first + 2]["kl"] > 1e-3


def test_a_stage_that_cannot_be_trained_is_left_out(tmp_path: Path) -> None:
    rows = [replace(row, rejected="There is a crab. " * 40) if row.stage == 1 else row for row in staged(tmp_path)]
    result = run(tmp_path, rows, quick(batch_size=2, max_length=100))
    assert (result.num_pairs, result.num_dropped, result.steps) == (4, 2, 2)
    assert sorted(path.name for path in (tmp_path / "run").glob("stage-*")) == ["stage-0", "stage-2"]
    assert [line["step"] for line in curve(tmp_path)] == [1, 2]


@pytest.mark.parametrize("wrong", ["media", "text"])
def test_what_is_wrong_in_the_last_stage_is_found_before_the_first(wrong: str, tmp_path: Path) -> None:
    rows, loaded = staged(tmp_path), tiny("qwen3-vl")
    assert rows[3].stage == 2
    if wrong == "media":
        (tmp_path / "3-0.png").unlink()
    else:
        rows[3] = replace(rows[3], chosen=f"One crab.{loaded.renderer.end_of_turn}")
    expected = {"media": "3-0.png", "text": "control token"}[wrong]
    with pytest.raises((MediaError, TrainError), match=rf"pair s3#0\.0.*{expected}"):
        run(tmp_path, rows, quick(batch_size=2), loaded=loaded)
    assert not list((tmp_path / "run").glob("stage-*"))


def test_media_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = Collator.__call__

    def watched(self: Collator, given: Sequence[PairRow]) -> Any:
        seen.extend(row.id for row in given)
        return original(self, given)

    monkeypatch.setattr(Collator, "__call__", watched)
    rows = staged(tmp_path)
    run(tmp_path, rows, quick(batch_size=2, vision_once="off"), SFT())  # else some are looked at to try it
    assert sorted(seen) == sorted([row.id for row in rows] * 2), "measured, then trained on"
    assert not list((tmp_path / "run").glob("stage-*/reference"))


def test_settings_are_refused_before_media_are_opened(tmp_path: Path) -> None:
    rows = staged(tmp_path)
    (tmp_path / "3-0.png").unlink()
    with pytest.raises(TrainError, match=r"train\.report_to: clipboard"):
        run(tmp_path, rows, quick(report_to=("clipboard",)))
