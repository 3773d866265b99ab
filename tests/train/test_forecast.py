"""Memory and operations foreseen without weights, beside what the allocator and the real step say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, RRPO, Objective
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.forecasting.forecast import Forecast, forecast
from mmalign.train.forecasting.ghost import Ghosts
from mmalign.train.forecasting.speed import measured
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.logps import Wanted, completion_logps, read
from mmalign.train.optimizer import adamw, autocast
from mmalign.train.weights import trainable, training_mode
from tests.models import tiny
from tests.train.rows import make_rows, quick

CPU = torch.device("cpu")


def outline(loaded: Loaded) -> Any:
    """The model without its weights."""
    with torch.device("meta"), no_init_weights():
        return type(loaded.model)(loaded.model.config).eval().requires_grad_(False)


def batch_of(loaded: Loaded, root: Path, *, shares: bool = True) -> PairBatch:
    rows = make_rows(root, 2, pictures=int(loaded.renderer.is_multimodal))
    marked = [replace(row, chosen_spans=((0, 5),), rejected_spans=((0, 2),)) for row in rows]
    return Collator(loaded.renderer, root, MediaLimits(), shares=shares)(marked)


def real_peak(loaded: Loaded, batch: PairBatch, objective: Objective, config: TrainConfig) -> int:
    """Bytes at the height of the second of two steps, as PyTorch's allocator counts them, and those of the weights."""
    model = trainable(loaded.model.requires_grad_(False), config)
    training_mode(model)
    optimizer, wanted = adamw(model, config), Wanted()
    weights = _bytes_of(model)
    if "divergence" in objective.needs:
        head = Head.of(model).frozen()
        weights += _bytes_of(head.linear) if head.linear is not Head.of(model).linear else 0
        tokens = int(batch.mask[batch.rows_of("chosen")].sum())
        wanted = Wanted(anchor=Anchor(torch.zeros(tokens, head.linear.weight.shape[-1]), head))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        for _ in range(2):
            with autocast(CPU, config):
                found = read(model, batch, wanted)
            loss = sum(value.sum() for value in (found.logps, found.divergence) if value is not None)
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            del found, loss
            optimizer.step()
            optimizer.zero_grad()
    live = peak = 0
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return weights + peak


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))


def foreseen(loaded: Loaded, batch: PairBatch, objective: Objective, config: TrainConfig) -> Forecast:
    return forecast(outline(loaded), batch, objective, config, CPU)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("qwen3-vl", {"lora": LoraConfig(rank=64)}),
        ("gemma3", {"gradient_checkpointing": True}),
        ("smolvlm", {}),
        ("llava", {"lora": None, "freeze_vision": False}),
        ("llava-onevision", {"precision": "bf16"}),
    ],
)
def test_the_peak_is_that_of_a_real_step(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    loaded, config = tiny(family), quick(**changes)
    batch = batch_of(loaded, tmp_path)
    found = foreseen(loaded, batch, DPO(), config)
    assert found.peak == pytest.approx(real_peak(loaded, batch, DPO(), config), rel=0.1)


def test_the_divergence_takes_what_it_takes(tmp_path: Path) -> None:
    loaded, config = tiny("qwen3-vl"), quick(lora=None)
    batch, objective = batch_of(loaded, tmp_path), RRPO()
    found, without = (foreseen(loaded, batch, goal, config) for goal in (objective, DPO()))
    assert found.peak > without.peak
    assert found.peak == pytest.approx(real_peak(loaded, batch, objective, config), rel=0.1)


def test_what_is_held_is_counted_exactly(tmp_path: Path) -> None:
    loaded, config = tiny("llama"), quick()
    batch = batch_of(loaded, tmp_path)
    found = foreseen(loaded, batch, DPO(), config)
    model = trainable(loaded.model.requires_grad_(False), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.trained == sum(parameter.numel() for parameter in trained)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert found.weights == 4 * found.parameters + buffers
    assert found.gradients == 4 * found.trained
    # Two moments, and one step counter per tensor.
    assert found.optimizer == 8 * found.trained + 4 * len(trained)
    assert found.activations > 0


def test_products_are_those_of_a_real_forward(tmp_path: Path) -> None:
    loaded, config = tiny("qwen3-vl"), quick()
    batch = batch_of(loaded, tmp_path)
    found = foreseen(loaded, batch, DPO(), config)
    model = trainable(loaded.model.requires_grad_(False), config)
    completion_logps(model, batch)  # the first forward tries the head
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        completion_logps(model, batch)
    assert found.scoring.flops == pytest.approx(counted.get_total_flops(), rel=0.01)
    # The tower has no backward pass, frozen weights half of one.
    assert 1.5 < found.micro.flops / found.scoring.flops < 3
    plain = foreseen(loaded, batch_of(loaded, tmp_path, shares=False), DPO(), config)
    assert plain.micro.flops > found.micro.flops


def test_checkpointing_takes_less_memory_and_more_products(tmp_path: Path) -> None:
    loaded = tiny("llama")
    batch = batch_of(loaded, tmp_path)
    plain, saved = (foreseen(loaded, batch, DPO(), quick(gradient_checkpointing=on)) for on in (False, True))
    assert saved.activations < 0.6 * plain.activations
    assert saved.micro.flops > 1.2 * plain.micro.flops


def test_a_model_larger_than_any_memory_takes_none(tmp_path: Path) -> None:
    loaded = tiny("llama")
    config = LlamaConfig(
        vocab_size=500_000,
        hidden_size=32_768,
        intermediate_size=65_536,
        num_hidden_layers=3,
        num_attention_heads=64,
        head_dim=512,
        tie_word_embeddings=False,
    )
    with torch.device("meta"), no_init_weights():
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    found = forecast(model, batch_of(loaded, tmp_path), DPO(), quick(), CPU)
    assert found.weights > 200e9
    assert found.trained / found.parameters < 0.01
    assert found.peak > found.weights + found.gradients + found.optimizer


# Ghosts --------------------------------------------------------------------------------------------------------------


def test_bytes_and_products_by_hand() -> None:
    ghosts = Ghosts(CPU)
    left, right = (ghosts.ghost(torch.empty(shape, device="meta")) for shape in ((100, 50), (50, 10)))
    assert ghosts.live == 4 * (5000 + 500)
    with ghosts:
        product = left @ right
        assert product.shape == (100, 10)
        seen = product.view(10, 100).T  # no memory, nothing done
        assert ghosts.live == 4 * (5000 + 500 + 1000)
        assert (ghosts.flops, ghosts.calls) == (2 * 100 * 50 * 10, 1)
        assert ghosts.moved == 4 * (5000 + 500 + 1000)
        del product, seen
        assert ghosts.live == 4 * (5000 + 500)
        assert ghosts.peak == 4 * (5000 + 500 + 1000)
        ghosts.forget()
        assert (ghosts.peak, ghosts.flops, ghosts.calls, ghosts.moved) == (ghosts.live, 0, 0, 0)


def test_places_are_real_and_what_is_made_of_ghosts_is_not() -> None:
    ghosts = Ghosts(CPU)
    table = ghosts.ghost(torch.empty(10, 4, device="meta"))
    with ghosts:
        ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
        mask = ids > 0
        assert int(mask.sum()) == 4  # read from real numbers
        rows = table[ids]
        assert rows[mask].shape == (4, 4)
        assert rows.sum().item() == 1.0
        assert bool((rows > 0).any())
        assert torch.allclose(rows, rows + 1)
        moved = rows.to(torch.bfloat16)
        assert (moved.dtype, moved.device) == (torch.bfloat16, CPU)


def test_weights_that_are_tied_count_once() -> None:
    ghosts = Ghosts(CPU)
    model = torch.nn.ModuleList([torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)])
    model[1].weight = model[0].weight
    assert ghosts.adopt(model) == 4 * 64
    assert model[1].weight is model[0].weight


def test_speed_is_that_of_this_device() -> None:
    found = measured(CPU, torch.float32, 1e5)
    assert found.flops > 1e7
    assert found.moved > 1e6
    assert 1e-8 < found.call < 1.0
    assert found.seconds(2 * found.flops, 3 * found.moved, 0) == pytest.approx(5.0)
    assert found.seconds(0, 0, 10) == pytest.approx(10 * found.call)
