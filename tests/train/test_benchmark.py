"""The benchmark of training runs, at sizes that say nothing about speed, and its bound counts what is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step.__main__ import main
from benchmarks.train_step.bound import NOTHING, Costs, Load, plain, shared
from benchmarks.train_step.memory import peak, restart
from benchmarks.train_step.models import load, pairs
from benchmarks.train_step.roads import Moment, Took, assert_same, settings
from mmalign.media.read import MediaLimits
from mmalign.train.data.collate import Collator
from mmalign.train.weights import trainable

#: TRL and datasets warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = "--side 4 --long-side 5 --width 64 --answer 8 --pairs 4 --batch 2 --runs 1".split()


def test_every_ratio_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That losses are those of TRL, and of rows of their own, is asserted inside."""
    main([*SMALL, "--models", "qwen2.5-vl", "--parts", "speed", "lists", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    for word in (
        "TRL ",
        "cold ",
        "warm ",
        "start ",
        "8 answers to prompts of",
        "processor seconds",
        "bound ",
        "reached",
    ):
        assert word in printed
    (found,) = json.loads((tmp_path / "found.json").read_text("utf-8"))["models"].values()
    assert set(found["speed"]["cold"]) == {"clock", "processor", "bound"}
    assert found["lists"]["eight answers"]["bound"] > 1


def test_losses_that_differ_are_no_comparison() -> None:
    now = Moment()
    one, other, still = (Took(now, now, now, losses) for losses in ([0.7, 0.6], [0.7, 0.6001], [0.7, 0.7]))
    assert_same(one, one)
    with pytest.raises(AssertionError, match="losses differ by"):
        assert_same(one, other)
    with pytest.raises(AssertionError, match="nothing was trained"):
        assert_same(still, still)


def test_operations_are_those_of_a_forward(tmp_path: Path) -> None:
    loaded = load("qwen2.5-vl", 4, 64)
    loaded.model.set_attn_implementation("eager")
    model = trainable(loaded.model, settings(2))
    batch = Collator(loaded.renderer, tmp_path, MediaLimits())(pairs("qwen2.5-vl", tmp_path, 2, 4, 8))
    costs = Costs.of(model, batch)
    whole = plain(batch)
    assert len(set(batch.lengths.flatten().tolist())) > 1, "with padding"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch.inputs, use_cache=False)
    everywhere = Load(whole.pictures, whole.tokens, whole.sights, whole.tokens)
    assert everywhere.forward(costs) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_each_thing_is_counted_once(tmp_path: Path) -> None:
    rows = pairs("llava", tmp_path, 1, 4, 8, completions=4)
    loaded = load("llava", 4, 64)
    batch = Collator(loaded.renderer, tmp_path, MediaLimits())(rows)
    found = shared(batch, rows)
    answers = batch.mask.sum(-1).tolist()
    prompt = int(batch.lengths[0, 0]) - answers[0]
    assert found.pictures == 1
    assert found.tokens == prompt + sum(answer - 1 for answer in answers)
    assert found.heads == plain(batch).heads == sum(answers)
    assert found + NOTHING == found
    costs = Costs(picture=1e3, token=10, adapters=1, sight=2, head=5)
    assert found.forward(costs) - found.forward(costs, sees=False) == 1e3
    assert found.forward(costs) - found.forward(costs, adapters=False) == found.tokens


def test_memory_is_what_was_held_at_most() -> None:
    base = restart()
    torch.ones(2**25).sum()  # 128 MiB for a moment
    assert 120 < peak() - base < 160
    assert restart() - base < 60
