"""RRPO through the trainer: the KL is that of whole distributions of a frozen start, however the run is cut up."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, RRPO
from mmalign.train import forward as forward_module
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.spans import with_phrases
from mmalign.train.logprobs.logps import Read, Wanted
from tests.models import STRING_TEMPLATE, tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, numbers, trainer
from tests.train.test_logps import plain_terms
from tests.train.test_resume import Stopping

BOTH = pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
#: Large enough to be seen beside the rank term.
OBJECTIVE = RRPO(alpha=0.2)


@BOTH
@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
def test_at_every_step_the_kl_is_that_of_whole_logits_to_a_copy_of_the_start(
    name: str, lora: LoraConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared step by step: AdamW's first steps turn rounding into whole updates, so two runs would drift apart."""
    rows = make_rows(tmp_path, 4, pictures=0 if name == "llama" else 1)
    start, original = copy.deepcopy(tiny(name).model), forward_module.read
    named, collate = {row.id: row for row in rows}, Collator(Renderer(tiny(name).processor), tmp_path, MediaLimits())
    largest = []

    def compared(model: Any, batch: PairBatch, wanted: Wanted) -> Read:
        found = original(model, batch, wanted)
        assert found.logps is not None
        assert found.divergence is not None
        with torch.no_grad():
            plain = collate([named[pair] for pair in batch.ids])
            for value, whole in zip((found.logps, found.divergence), plain_terms(model, start, plain), strict=True):
                torch.testing.assert_close(value.detach(), whole, atol=2e-5, rtol=1e-4)
        largest.append(found.divergence.max().item())
        return found

    monkeypatch.setattr(forward_module, "read", compared)
    trainer(tmp_path, rows, quick(epochs=4, lora=lora), OBJECTIVE, loaded=tiny(name)).train()
    lines = curve(tmp_path)
    assert len(largest) == 8
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert lines[-1]["kl"] > 0.05
    assert lines[-1]["margin"] > 0.05
    assert 0 < lines[0]["chosen_phrase_tokens"] < 30


def test_adapter_off_gives_the_same_reference(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    trainer(tmp_path, rows, quick(epochs=4), OBJECTIVE).train()
    trainer(tmp_path, rows, quick(epochs=4, precompute_reference=False), OBJECTIVE, run="off").train()
    assert_same_curve(numbers(tmp_path, "off"), numbers(tmp_path), 1e-5)
    assert _kept(tmp_path / "run") == len(rows)
    assert _kept(tmp_path / "off") == 0


def _kept(run: Path) -> int:
    """Pairs of which a run keeps the reference's states."""
    parts = list((run / "reference").rglob("*.safetensors"))
    assert parts
    return sum(name.startswith("states.") for part in parts for name in load_file(part))


@BOTH
def test_micro_batches_and_gradient_checkpointing_change_nothing(lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = [replace(row, weight=0.5 + index) for index, row in enumerate(make_rows(tmp_path, 5))]
    config = quick(batch_size=5, epochs=2, lora=lora, learning_rate=1e-4)
    trainer(tmp_path, rows, replace(config, micro_batch_size=5), OBJECTIVE, run="5").train()
    for run, changes in (
        ("1", {"micro_batch_size": 1}),
        ("3", {"micro_batch_size": 3, "gradient_checkpointing": True}),
    ):
        trainer(tmp_path, rows, replace(config, **changes), OBJECTIVE, run=run).train()  # type: ignore[arg-type]
        assert_same_curve(numbers(tmp_path, run), numbers(tmp_path, "5"), 1e-4)


@BOTH
def test_a_killed_run_keeps_the_reference_of_its_start(lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    config = quick(epochs=4, batch_size=2, checkpoint_every_steps=3, lora=lora)
    trainer(tmp_path, rows, config, Stopping(calls=[], inner=OBJECTIVE), run="whole").train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, config, Stopping(calls=[], at=5, inner=OBJECTIVE)).train()
    calls: list[int] = []
    trainer(tmp_path, rows, config, Stopping(calls=calls, inner=OBJECTIVE)).train()
    assert len(calls) == 5
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)
    assert curve(tmp_path)[-1]["kl"] > 0.01


def test_in_bfloat16_policy_and_reference_are_rounded_alike(tmp_path: Path) -> None:
    trainer(tmp_path, make_rows(tmp_path, 4), quick(epochs=6, precision="bf16"), OBJECTIVE).train()
    lines = curve(tmp_path)
    assert lines[0]["kl"] == pytest.approx(0.0, abs=0.02)
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=0.02)
    assert lines[-1]["margin"] > 0.1


def test_the_kl_holds_the_policy_back(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    found = {}
    for alpha in (1e-6, 1.0):
        trainer(tmp_path, rows, quick(epochs=8), RRPO(alpha=alpha), run=f"{alpha}").train()
        found[alpha] = curve(tmp_path, f"{alpha}")[-1]["kl"]
    assert found[1.0] < 0.5 * found[1e-6]


# Phrases --------------------------------------------------------------------------------------------------------------


def test_spans_come_from_the_pair_or_from_the_words(tmp_path: Path) -> None:
    carried, found = make_rows(tmp_path, 2)
    carried = replace(carried, chosen_spans=((0, 5),))
    for objective in (RRPO(), DPO(changed_weight=2.0), DPO(unchanged_weight=0.0)):
        first, second = with_phrases([carried, found], objective)
        assert first == carried
        assert [second.chosen[start:end] for start, end in second.chosen_spans] == ["Yes"]
        assert [second.rejected[start:end] for start, end in second.rejected_spans[:1]] == ["No"]
    assert with_phrases([carried, found], DPO()) == [carried, found]


def test_pairs_of_equal_texts_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(tmp_path, 4)
    rows[1] = replace(rows[1], rejected=rows[1].chosen)
    with caplog.at_level(logging.WARNING, "mmalign.train"):
        result = trainer(tmp_path, rows, quick(), OBJECTIVE).train()
    assert (result.num_pairs, result.num_dropped) == (3, 1)
    assert "1 of 4 pairs have no words that differ, such as s1#0.0; they are left out" in caplog.text
    same = [replace(row, rejected=row.chosen) for row in rows]
    with pytest.raises(TrainError, match=r"^4 of 4 pairs have no words that differ, such as s0#0\.0; rrpo learns"):
        trainer(tmp_path, same, quick(), OBJECTIVE, run="none")
    assert trainer(tmp_path, rows, quick(), DPO(changed_weight=2.0), run="dpo").train().num_pairs == 4


def test_spans_find_their_tokens_where_the_template_trims_the_answer(tmp_path: Path) -> None:
    loaded = tiny("llama")
    loaded.processor.chat_template = STRING_TEMPLATE.replace("m.content + ''", "m.content | trim")
    row = replace(make_rows(tmp_path, 1, pictures=0)[0], chosen=" \n A big blue fish. ", rejected="A big red fish.")
    collate = Collator(Renderer(loaded.processor), tmp_path, MediaLimits())
    batch = collate(with_phrases([row], RRPO()))
    marked = []
    for ids, mask, changed in zip(batch.inputs["input_ids"], batch.completion_mask, batch.changed, strict=True):
        tokens = ids[mask]
        marked.append(loaded.processor.decode(tokens[changed[: len(tokens)]]).strip())
    assert marked == ["blue", "red"]


def test_a_model_that_makes_logits_in_its_own_way_is_refused(tmp_path: Path) -> None:
    loaded = tiny("llama")
    original = type(loaded.model).forward

    class Bent(type(loaded.model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
            kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}
            output = original(self, **kwargs)
            output.logits = output.logits.clamp(max=0.5)
            return output

    loaded.model.__class__ = Bent
    rows = make_rows(tmp_path, 2, pictures=0)
    with pytest.raises(TrainError, match="does more to its logits than mmalign knows"):
        trainer(tmp_path, rows, quick(), OBJECTIVE, loaded=loaded).train()
    trainer(tmp_path, rows, quick(), RRPO(alpha=0.0), loaded=loaded, run="without").train()


def test_a_reference_of_another_objective_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """The first pass of DPO keeps no states; RRPO makes its own beside it."""
    rows = with_phrases(make_rows(tmp_path, 2), RRPO())
    config = quick(checkpoint_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, config, Stopping(calls=[], at=1)).train()
    assert trainer(tmp_path, rows, config, OBJECTIVE).train().num_pairs == 2


def test_the_reference_head_is_kept_where_it_is_trained() -> None:
    full = forward_module.Head.of(tiny("llama").model.requires_grad_(True))
    assert full.frozen().linear is not full.linear
    assert torch.equal(full.frozen().linear.weight, full.linear.weight)  # type: ignore[arg-type]
    still = forward_module.Head.of(tiny("llama").model.requires_grad_(False))
    assert still.frozen().linear is still.linear
