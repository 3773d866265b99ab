"""Which models share prompts: those whose numbers stay the same, found out before a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mmalign.lm.load import Loaded
from mmalign.lm.prefix import Branches
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, RRPO, Objective
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.sharing import Trial, share_where_equal
from tests.models import STRING_TEMPLATE, clip, picture, tiny, tokenizer
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, numbers, trainer
from tests.train.test_mixed import pairs_about
from tests.train.test_shared import compare

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MIXED_LAYERS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}


def made(kind: Any, config: Any) -> Loaded:
    """A random text model with larger weights than its class starts with, so that every layer counts."""
    tok = tokenizer(STRING_TEMPLATE, bos=True)
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    return Loaded(model.eval().requires_grad_(False), tok, "random")


WINDOWED: dict[str, Callable[[], Loaded]] = {
    "mistral": lambda: made(MistralForCausalLM, MistralConfig(**SIZES, vocab_size=400, sliding_window=6)),
    "gemma2": lambda: made(Gemma2ForCausalLM, Gemma2Config(**SIZES, vocab_size=400, **MIXED_LAYERS)),
    "gemma3": lambda: made(Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, vocab_size=400, **MIXED_LAYERS)),
}


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("mistral", "sdpa"), ("mistral", "eager"), ("gemma2", "eager"), ("gemma3", "sdpa"), ("gemma3", "eager")],
)
def test_windows_are_kept(name: str, kernel: str, tmp_path: Path) -> None:
    """An answer's tokens see the last few before them in their own text, not in the row."""
    loaded = WINDOWED[name]()
    loaded.model.set_attn_implementation(kernel)
    compare(loaded, make_rows(tmp_path, 3, pictures=0), tmp_path)


def tried(loaded: Loaded, root: Path, **changes: Any) -> bool:
    rows = make_rows(root, 3, pictures=0)
    settings: dict[str, Any] = {"size": 2, "max_length": None, "autocast": nullcontext, "device": torch.device("cpu")}
    collate = Collator(loaded.renderer, root, MediaLimits())
    trial = Trial(model=loaded.model, rows=rows, kinds=["text"] * 3, **{**settings, **changes})
    return share_where_equal(collate, trial).shares


def test_a_model_that_can_shares_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tried(tiny("qwen3"), tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (MambaForCausalLM, MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2), "takes no positions"),
        (
            Lfm2ForCausalLM,
            Lfm2Config(
                **{key: value for key, value in SIZES.items() if key != "head_dim"},
                vocab_size=400,
                layer_types=["conv", "full_attention"],
            ),
            "it has layers of conv",
        ),
    ],
    ids=["mamba", "lfm2"],
)
def test_a_model_that_cannot_says_so_in_one_line(
    kind: Any, config: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not tried(made(kind, config), tmp_path)
    (record,) = [record for record in caplog.records if record.name == "mmalign.train"]
    assert record.levelno == logging.WARNING
    assert "train.shared_prefix" in record.message
    assert reason in record.message
    assert "\n" not in record.message


def test_small_faults_are_seen_although_training_rounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its tokens of a picture seeing each other, Gemma's numbers change less than bfloat16 changes them."""
    loaded = tiny("gemma3")
    collate, rows = Collator(loaded.renderer, tmp_path, MediaLimits()), make_rows(tmp_path, 3)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    settings: dict[str, Any] = {"size": 2, "max_length": None, "autocast": autocast, "device": torch.device("cpu")}
    trial = Trial(model=loaded.model, rows=rows, kinds=["pictures"] * 3, **settings)
    assert share_where_equal(collate, trial).shares
    monkeypatch.setattr("mmalign.lm.prefix._blocks", lambda model, inputs: None)
    assert not share_where_equal(collate, trial).shares
    assert "are off by up to" in caplog.text


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_weights_of_16_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding passes, answers that see each other do not."""
    loaded = tiny(name)
    loaded.model.bfloat16()
    assert tried(loaded, tmp_path)
    original = Branches.visible
    monkeypatch.setattr(
        Branches, "visible", lambda self, *given: original(Branches(self.owner.clamp(max=0), self.depth), *given)
    )
    assert not tried(loaded, tmp_path)


def test_models_that_look_ahead_in_unknown_ways_do_not_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny("gemma3")
    loaded.model.config.text_config.use_bidirectional_attention = True
    loaded.model.config.model_type = "gemma9"
    assert not tried(loaded, tmp_path)
    assert "its tokens may see those behind them" in caplog.text


def test_a_kernel_without_masks_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny("llama")
    loaded.model.config._attn_implementation = "flash_attention_2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.train.sharing.completion_logps", counted := _Counted())
        assert not tried(loaded, tmp_path)
    assert counted.calls == 2
    assert "its attention is flash_attention_2" in caplog.text


class _Counted:
    """`completion_logps`, with the plain forward left out for a kernel that is not installed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        from mmalign.lm.prefix import arguments

        self.calls += 1
        if batch.branches is not None:
            arguments(model, batch.inputs, batch.branches)
        return torch.zeros(batch.mask.shape)


def test_unequal_numbers_are_seen_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose config tells nothing of what its layers do."""
    monkeypatch.setattr("mmalign.lm.prefix.Branches.visible", lambda self, *_: (self.depth >= 0)[:, None, None])
    assert not tried(tiny("llama"), tmp_path)
    assert "tried on s0#0.0, s1#0.0: with the prompt shared, log-probs are off by up to" in caplog.text


def test_pairs_over_the_limit_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def noted(model: Any, batch: Any) -> torch.Tensor:
        seen.append(batch.ids)
        return torch.zeros(batch.mask.shape)

    monkeypatch.setattr("mmalign.train.sharing.completion_logps", noted)
    loaded = tiny("llama")
    lengths = Collator(loaded.renderer, tmp_path, MediaLimits())(make_rows(tmp_path, 3, pictures=0)).lengths.amax(0)
    assert lengths.min() < lengths.max()
    assert tried(loaded, tmp_path, max_length=int(lengths.max()) - 1)
    long = {f"s{index}#0.0" for index, length in enumerate(lengths.tolist()) if length == int(lengths.max())}
    assert seen
    assert not long & {pair for batch in seen for pair in batch}


def test_every_kind_of_media_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs_about([picture(0), clip(1), None, clip(2), picture(3)], monkeypatch)
    seen: list[tuple[str, ...]] = []

    def noted(model: Any, batch: PairBatch) -> torch.Tensor:
        seen.append(batch.ids)
        return completion_logps(model, batch)

    monkeypatch.setattr("mmalign.train.sharing.completion_logps", noted)
    trainer(tmp_path, rows, quick(micro_batch_size=1, batch_size=5), loaded=tiny("qwen2.5-vl")).train()
    whether_seen_once = [("p0",), ("p0",), ("p1",), ("p1",)]
    whether_shared = [("p0",), ("p0",), ("p1",), ("p1",), ("p2",), ("p2",)]
    assert seen == whether_seen_once + whether_shared


def _last_word(text: str) -> list[tuple[int, int]]:
    return [(len(text) - 4, len(text) - 1)]


@pytest.mark.parametrize("objective", [DPO(), RRPO()], ids=lambda objective: objective.name)
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
@pytest.mark.parametrize("precompute", [True, False], ids=["reference before", "reference beside"])
def test_training_gives_the_same_curve(
    objective: Objective, lora: LoraConfig | None, precompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lora is None and not precompute:
        return
    widths: dict[str, set[int]] = {"auto": set(), "off": set()}
    # Phrases that answers do not share: Adam makes whole steps of the rounding that is left of a gradient of 0.
    rows = [
        replace(row, chosen_spans=_last_word(row.chosen), rejected_spans=_last_word(row.rejected))
        for row in make_rows(tmp_path, 4)
    ]
    for mode, seen in widths.items():
        loaded = tiny("qwen2.5-vl")
        loaded.model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.add(len(kwargs["input_ids"])), with_kwargs=True
        )
        config = quick(epochs=3, lora=lora, precompute_reference=precompute, shared_prefix=mode, learning_rate=1e-4)
        trainer(tmp_path, rows, config, objective, loaded=loaded, run=mode).train()
    assert widths == {"auto": {2, 4}, "off": {4}}, "two pairs of two answers each: the plain batch is tried once"
    assert_same_curve(numbers(tmp_path, "auto"), numbers(tmp_path, "off"), 1e-4)


def test_a_run_can_go_on_the_other_way(tmp_path: Path) -> None:
    """Sharing changes time and memory, so a finished or continued run may differ in it."""
    rows = make_rows(tmp_path, 4)
    trainer(tmp_path, rows, quick(epochs=1, shared_prefix="off")).train()
    trainer(tmp_path, rows, quick(epochs=1, shared_prefix="auto")).train()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_pairs"] == 4
