"""Media that are seen once: the same log-probs and gradients, and a tower that is asked no more than it must be."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.errors import MediaError, TrainError
from mmalign.lm.vision import Features
from mmalign.objectives import DPO, RRPO
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig
from mmalign.train.data import collate as collate_module
from mmalign.train.data.collate import Collator
from mmalign.types import Chat, Media, MediaRef, Message
from tests.models import SEEING, clip, picture, tiny
from tests.train.rows import CHOSEN, REJECTED, make_rows, quick
from tests.train.runs import assert_same_curve, numbers, trainer
from tests.train.seen import LIMITS, counted, counting, encoder_of, seen_batches, trained
from tests.train.test_shared import assert_equal, measured

FAMILIES = (
    *("llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision", "llava-next-video"),
    *("smolvlm", "internvl", "idefics3", "gemma3", "tiny"),
)
PICTURES: list[list[Media]] = [[picture(1)], [], [picture(2, size=(48, 32)), picture(3)], [picture(4, size=(32, 64))]]
CLIPS: list[list[Media]] = [[clip(0)], [], [clip(1, size=(48, 32))]]
BOTH: list[list[Media]] = [[picture(5), clip(2)], [picture(6)], [], [clip(3)]]


def about(media: Sequence[Sequence[Media]], monkeypatch: pytest.MonkeyPatch) -> list[PairRow]:
    """Pairs about media that are in memory; those with two media reject an answer about the first of them alone."""
    rows, chats = [], {}
    for index, shown in enumerate(media):
        words = f"Describe it. {index}"
        whole, part = (Chat((Message("user", (*own, words)),)) for own in (shown, shown[:1]))
        chats |= {json.dumps(chat.to_rows(), sort_keys=True): chat for chat in (whole, part)}
        rows.append(
            PairRow(
                id=f"p{index}",
                sample_id=f"p{index}",
                method="test",
                context=whole.to_rows(),
                rejected_context=part.to_rows() if len(shown) > 1 else None,
                chosen=CHOSEN[index % 4],
                rejected=REJECTED[index % 4],
            )
        )
    monkeypatch.setattr(collate_module, "open_context", lambda turns, *where: chats[json.dumps(turns, sort_keys=True)])
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_gradients_are_those_of_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(name)
    model = trained(loaded, lora=None)
    # SmolVLM takes pictures or clips in a batch.
    for media in (PICTURES, CLIPS) if name == "smolvlm" else (PICTURES, BOTH):
        rows = about(media, monkeypatch)
        plain, apart, shared = seen_batches(loaded, model, rows)
        with counted(model) as passes:
            expected = measured(model, plain)
            assert passes
            passes.clear()
            for batch in (apart, shared):
                assert not any("pixel" in key for key in batch.inputs)
                assert torch.equal(batch.lengths, plain.lengths)
                assert torch.equal(batch.places.labels, plain.places.labels)
                assert_equal(measured(model, batch), expected)
            assert not passes
        assert torch.equal(apart.inputs["input_ids"], plain.inputs["input_ids"])


@pytest.mark.parametrize("name", SEEING)
def test_adapters_and_activations_computed_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(name)
    model = trained(loaded, lora=LoraConfig(rank=4), gradient_checkpointing=True)
    plain, apart, shared = seen_batches(loaded, model, about(PICTURES, monkeypatch))
    for batch in (apart, shared):
        assert_equal(measured(model, batch), measured(model, plain))


def test_an_answer_that_fuses_with_its_prompt(tmp_path: Path) -> None:
    """The last letters of the prompt and the first of an answer can become one token, which is the answer's."""
    loaded = tiny("qwen2.5-vl")
    (row,) = make_rows(tmp_path, 1)
    begun = [*row.context, {"role": "assistant", "content": [{"type": "text", "text": "There is a bi"}]}]
    row = replace(row, context=begun, chosen="g blue fish.", rejected="rd.")
    model = trained(loaded, lora=None)
    plain, apart, shared = seen_batches(loaded, model, [row], tmp_path)
    before = loaded.renderer.token_ids(loaded.renderer.prompt(Chat((Message("assistant", ("There is a bi",)),))))
    whole = loaded.renderer.token_ids(loaded.renderer.prompt(Chat((Message("assistant", ("There is a big",)),))))
    assert before[-1] not in whole, "the letters do fuse"
    assert torch.equal(apart.inputs["input_ids"], plain.inputs["input_ids"])
    for batch in (apart, shared):
        assert_equal(measured(model, batch), measured(model, plain))


@pytest.mark.parametrize("name", ["qwen3-vl", "llava"])
def test_in_bfloat16_features_keep_their_bits(name: str, tmp_path: Path) -> None:
    """What autocast computes is what is stored."""
    loaded = tiny(name)
    config = quick(precision="bf16", feature_cache=tmp_path / "cache", feature_memory_gb=0)
    model = trained(loaded, precision="bf16")
    rows = make_rows(tmp_path, 2)
    fresh, again = (seen_batches(loaded, model, rows, tmp_path, config)[1].features for _ in range(2))
    assert fresh is not None
    assert again is not None
    assert fresh.pooled["image"].dtype == torch.bfloat16
    for key, value in fresh.tensors().items():
        assert torch.equal(value, again.tensors()[key])
        assert value.dtype == again.tensors()[key].dtype


# How often ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_one_pass_per_context_and_none_with_a_warm_folder(
    lora: LoraConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(collate_module, "open_context", counting(collate_module.open_context, opened))
    rows = [replace(row, chosen_spans=[(0, 3)], rejected_spans=[(0, 3)]) for row in make_rows(tmp_path, 5)]
    passes: dict[str, int] = {}
    for run, changes in {
        "off": {"vision_once": "off"},
        "memory": {},
        "cold": {"feature_cache": tmp_path / "cache", "feature_memory_gb": 0},
        "warm": {"feature_cache": tmp_path / "cache"},
    }.items():
        loaded = tiny("qwen2.5-vl")
        opened.clear()
        with counted(loaded.model) as found:
            config = quick(epochs=3, lora=lora, learning_rate=1e-4, **changes)
            trainer(tmp_path, rows, config, RRPO(), loaded=loaded, run=run).train()
        passes[run] = len(found)
        assert bool(opened) == (run != "warm")
        assert_same_curve(numbers(tmp_path, run), numbers(tmp_path, "off"), 1e-5)
    # Before a run one batch is computed with pixels, to compare.
    assert passes["memory"] == passes["cold"] == len(rows) + 1
    assert passes["warm"] == 0
    assert passes["off"] > 3 * len(rows) / 2


def test_a_reference_beside_the_policy_uses_the_same_features(tmp_path: Path) -> None:
    """Even where nothing is kept, the two forwards of a step share them."""
    loaded = tiny("llava")
    rows = make_rows(tmp_path, 4)
    with counted(loaded.model) as passes:
        config = quick(epochs=2, precompute_reference=False, shared_prefix="off", feature_memory_gb=0)
        trainer(tmp_path, rows, config, loaded=loaded).train()
    tried, measuring, epochs = 1 + 2, len(rows), 2 * len(rows)
    assert len(passes) == tried + measuring + epochs


def test_contexts_about_the_same_media_share_a_pass(tmp_path: Path) -> None:
    loaded = tiny("qwen2.5-vl")
    model = trained(loaded)
    (first,) = make_rows(tmp_path, 1)
    other = [{**first.context[0], "content": [first.context[0]["content"][0], {"type": "text", "text": "Say: one."}]}]
    rows = [first, replace(first, id="other", context=other)]
    with counted(model) as passes:
        plain, apart, _ = seen_batches(loaded, model, rows, tmp_path)
    assert len(passes) == 1
    assert torch.equal(apart.inputs["input_ids"], plain.inputs["input_ids"])


def test_a_clip_that_does_not_say_its_frames_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many pictures stand in a prompt is not known else."""
    loaded = tiny("llava")
    model = trained(loaded, lora=None)
    shown = replace(clip(0), ref=MediaRef("0.mp4", "video"))
    plain, apart, _ = seen_batches(loaded, model, about([[shown]], monkeypatch))
    assert torch.equal(apart.inputs["input_ids"], plain.inputs["input_ids"])


# Who does not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LoraConfig(rank=2), None], ids=["lora", "full"])
def test_a_trained_tower_is_asked_every_time(lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 2)
    loaded = tiny("qwen2.5-vl")
    with counted(loaded.model) as passes:
        config = quick(epochs=2, batch_size=2, freeze_vision=False, lora=lora, feature_cache=tmp_path / "cache")
        trainer(tmp_path, rows, config, loaded=loaded).train()
    assert len(passes) >= 2 * len(rows)
    assert not (tmp_path / "cache").exists()


def test_who_has_no_encoder() -> None:
    for name, changes in {"llama": {}, "qwen3-vl": {"vision_once": "off"}}.items():
        loaded = tiny(name)
        assert encoder_of(loaded, trained(loaded), quick(**changes)) is None


def test_other_numbers_are_seen_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Features.arguments

    def turned(self: Features) -> dict[str, Any]:
        return original(Features({kind: flat.flip(0) for kind, flat in self.pooled.items()}, self.deep, self.listed))

    monkeypatch.setattr(Features, "arguments", turned)
    rows, loaded = make_rows(tmp_path, 2), tiny("llava")
    with counted(loaded.model) as passes:
        trainer(tmp_path, rows, quick(epochs=2, feature_cache=tmp_path / "cache"), loaded=loaded).train()
    (record,) = [record for record in caplog.records if record.name == "mmalign.train"]
    assert record.levelno == logging.WARNING
    assert (
        "train.vision_once: every forward computes its features, tried on s0#0.0, s1#0.0: with features" in caplog.text
    )
    assert len(passes) > 4
    assert not list((tmp_path / "cache").glob("equal-*"))


def test_a_tower_that_is_built_otherwise_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*given: Any) -> None:
        raise AttributeError("no pooler_output\nand more")

    monkeypatch.setattr("mmalign.train.cache.encoded.see", missing)
    trainer(tmp_path, make_rows(tmp_path, 2), quick(), loaded=tiny("llava")).train()
    assert "train.vision_once: every forward computes its features, tried on s0#0.0, s1#0.0: no pooler" in caplog.text
    assert "and more" not in caplog.text


def test_what_was_not_tried_is_not_taken_for_equal(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 2)
    run = trainer(tmp_path, rows, quick(feature_cache=tmp_path / "cache", max_length=2), loaded=tiny("llava"))
    with pytest.raises(TrainError):
        run.train()
    assert not list((tmp_path / "cache").glob("equal-*"))


def test_a_forward_that_takes_none_keeps_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.train.cache.encoded.takes_features", lambda model: False)
    loaded = tiny("llava")
    assert encoder_of(loaded, trained(loaded)) is None
    trainer(tmp_path, make_rows(tmp_path, 2), quick(), loaded=loaded).train()


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_mistakes_name_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llava")
    encoder = encoder_of(loaded, trained(loaded))
    collate = Collator(loaded.renderer, tmp_path, LIMITS, encoder=encoder)
    good, bad = make_rows(tmp_path, 2)
    (tmp_path / "1-0.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"^pair s1#0\.0: 1-0\.png"):
        collate([good, bad])
    monkeypatch.setattr(loaded.renderer, "encode", _refusing)
    with pytest.raises(TrainError, match=r"^pair s9: the processor refuses media and text: too small$"):
        collate([replace(good, id="s9", context=[*good.context, *good.context])])


def test_memory_that_runs_out_in_the_tower_names_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llava")
    collate = Collator(loaded.renderer, tmp_path, LIMITS, encoder=encoder_of(loaded, trained(loaded)))

    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("mmalign.train.cache.encoded.see", full)
    told = r"^pair s0#0\.0: memory ran out in the vision tower, .* 2 media alone; in a new run, lower data\.max_side$"
    with pytest.raises(TrainError, match=told):
        collate(make_rows(tmp_path, 1, pictures=2))


def _refusing(*given: Any, **named: Any) -> None:
    raise ValueError("too small")


def test_a_folder_that_cannot_be_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    rows = make_rows(tmp_path, 1)
    with pytest.raises(TrainError, match=r"^train\.feature_cache"):
        trainer(tmp_path, rows, quick(feature_cache=tmp_path / "file"), DPO(), loaded=tiny("llava")).train()


def test_features_go_where_the_batch_goes(tmp_path: Path) -> None:
    loaded = tiny("qwen3-vl")
    _, apart, _ = seen_batches(loaded, trained(loaded), make_rows(tmp_path, 1), tmp_path)
    assert isinstance(loaded.model, nn.Module)
    moved = apart.to(torch.device("meta")).features
    assert moved is not None
    assert all(value.is_meta for value in moved.tensors().values())
