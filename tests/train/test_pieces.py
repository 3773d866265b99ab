"""The small parts: order of pairs, learning rate, atomic files, metrics, settings, which weights are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmalign.atomic import discard, replacing, sweep
from mmalign.errors import TrainError
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.metrics import MetricsLog, read_metrics
from mmalign.train.schedule import Order, lr_factor, micro_batches, rank_share
from mmalign.train.weights import reaches_media, switch_off_dropout, trainable, training_mode
from tests.models import ALL, SEEING, tiny

# Order and rate -------------------------------------------------------------------------------------------------------


@given(num_pairs=st.integers(1, 40), batch_size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_every_epoch_takes_every_pair_once(num_pairs: int, batch_size: int, epochs: int, seed: int) -> None:
    order = Order(num_pairs, batch_size, epochs, seed)
    steps = [order.batch(step) for step in range(order.num_steps)]
    per_epoch = order.steps_per_epoch
    for epoch in range(epochs):
        taken = [index for batch in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for index in batch]
        assert sorted(taken) == list(range(num_pairs))
    assert all(0 < len(batch) <= batch_size for batch in steps)


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(Order(50, 50, 2, seed).batch(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert Order(50, 50, 2, 0).batch(1) == Order(50, 50, 2, 0).batch(1)


@given(num_pairs=st.integers(1, 20), world=st.integers(1, 8))
def test_ranks_share_a_step_evenly_and_count_each_pair_once(num_pairs: int, world: int) -> None:
    shares = [rank_share(list(range(num_pairs)), rank, world) for rank in range(world)]
    assert len({len(taken) for taken, _ in shares}) == 1
    counted = [index for taken, count in shares for index in taken[:count]]
    assert sorted(counted) == list(range(num_pairs))


@given(
    kinds=st.lists(st.sampled_from(["image", "text", "video"]), min_size=1, max_size=20),
    world=st.integers(1, 4),
    size=st.integers(1, 4),
)
def test_forwards_hold_one_kind_and_ranks_run_the_same_ones(kinds: list[str], world: int, size: int) -> None:
    plans = [micro_batches(list(range(len(kinds))), kinds, rank, world, size) for rank in range(world)]
    shown = [[(kinds[part.indices[0]], len(part.indices)) for part in plan] for plan in plans]
    assert all(plan == shown[0] for plan in shown)
    for plan in plans:
        assert all(len({kinds[index] for index in part.indices}) == 1 for part in plan)
        assert all(0 < len(part.indices) <= size for part in plan)
        assert all(0 <= part.num_counted <= len(part.indices) for part in plan)
    counted = [index for plan in plans for part in plan for index in part.indices[: part.num_counted]]
    assert sorted(counted) == list(range(len(kinds)))


def test_learning_rate() -> None:
    cosine = [lr_factor(step, 10, 0.2, "cosine") for step in range(10)]
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[6] == pytest.approx(0.5)
    assert 0 < cosine[9] < cosine[8]
    assert [lr_factor(step, 4, 0.0, "linear") for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert {lr_factor(step, 4, 0.0, "constant") for step in range(4)} == {1.0}
    assert lr_factor(0, 1, 0.05, "cosine") == pytest.approx(0.5), "a run of one step still moves"


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with replacing(path) as partial:
        assert not partial.exists(), "what an earlier attempt left is gone"
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("first", "second"):
        with replacing(path) as partial:
            (partial / "deep").mkdir(parents=True)
            (partial / "deep" / content).write_text(content)
    assert [entry.name for entry in (path / "deep").iterdir()] == ["second"]
    (tmp_path / ".partial-left").mkdir()
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    discard(path)
    discard(path)
    assert not list(tmp_path.iterdir())


def test_metrics_go_back_to_a_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    assert read_metrics(log.path) == []
    log.rewind(0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 0.5 * step})
    with log.path.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3]
    log.rewind(2)
    log.append({"step": 3, "loss": 9.0})
    assert read_metrics(log.path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup_ratio": 1.5}, "warmup_ratio is 1.5; it must be between 0 and 1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"lora": LoraConfig(rank=0)}, "lora.rank is 0"),
        ({"lora": None, "precompute_reference": False}, "precompute_reference is false"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)  # type: ignore[arg-type]


# Weights --------------------------------------------------------------------------------------------------------------


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", ALL)
def test_adapters_lie_on_every_linear_layer_of_the_language_model(name: str) -> None:
    model = trainable(tiny(name).model, TrainConfig())
    names = trained_names(model)
    layers = {part.split(".lora_")[0].split("base_model.model.")[1] for part in names}
    decoder = "model" if name in ("llama", "qwen3") else "model.language_model"
    expected = {
        f"{decoder}.layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            *(f"self_attn.{head}_proj" for head in "qkvo"),
            *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
        )
    }
    assert layers == expected
    assert len(names) == 2 * len(expected)


@pytest.mark.parametrize("name", SEEING)
def test_adapters_reach_the_tower_when_asked(name: str) -> None:
    names = trained_names(trainable(tiny(name).model, TrainConfig(freeze_vision=False)))
    assert any("visual" in part or "vision_tower" in part for part in names)
    assert not any("lm_head" in part for part in names)


@pytest.mark.parametrize("name", SEEING)
def test_full_training_freezes_the_tower_unless_asked(name: str) -> None:
    frozen = trained_names(trainable(tiny(name).model, TrainConfig(lora=None)))
    assert frozen
    assert not any("vis" in part or "projector" in part for part in frozen)
    assert "lm_head.weight" in frozen
    everything = trainable(tiny(name).model, TrainConfig(lora=None, freeze_vision=False))
    assert all(parameter.requires_grad for parameter in everything.parameters())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_whether_training_reaches_beyond_the_language_model(name: str, lora: LoraConfig | None) -> None:
    frozen, free = (trainable(tiny(name).model, TrainConfig(lora=lora, freeze_vision=on)) for on in (True, False))
    assert not reaches_media(frozen)
    assert reaches_media(free) == (name in SEEING)
    if lora is not None:
        assert reaches_media(trainable(free, TrainConfig())) == (name in SEEING), "an adapter it came with goes on"


def test_chosen_targets() -> None:
    model = trainable(tiny("llava").model, TrainConfig(lora=LoraConfig(targets=("q_proj",))))
    names = trained_names(model)
    assert len(names) == 4, "two layers, two matrices; the tower's own q_proj stays as it is"
    with pytest.raises(TrainError, match=r"lora\.targets: queries: no such linear layer; the model has down_proj"):
        trainable(tiny("llava").model, TrainConfig(lora=LoraConfig(targets=("queries",))))


def test_only_adapter_dropout_is_on() -> None:
    model = tiny("llava").model
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.5
    model.extra = nn.Dropout(0.5)
    adapted = trainable(model, TrainConfig(lora=LoraConfig(dropout=0.25)))
    assert model.extra.p == 0.0
    assert model.model.language_model.layers[0].self_attn.attention_dropout == 0.0
    training_mode(adapted)
    rates = {module.p for name, module in adapted.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert rates == {0.25}
    assert not adapted.base_model.model.model.vision_tower.training
    assert adapted.base_model.model.model.language_model.layers[0].training
    switch_off_dropout(adapted)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.25 for module in adapted.modules())


def test_half_precision_weights_that_are_trained_become_float32() -> None:
    model = trainable(tiny("qwen3-vl").model.bfloat16(), TrainConfig(lora=None, precision="bf16"))
    kinds = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    model = trainable(tiny("qwen3-vl").model.bfloat16(), TrainConfig(lora=None))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
