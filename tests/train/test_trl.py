"""The same training as TRL's DPOTrainer, step for step, on pictures and on text."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, Objective, RobustDPO
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator
from mmalign.train.data.context import open_context
from mmalign.train.metrics import read_metrics
from mmalign.train.trainer import PreferenceTrainer
from tests.models import READING, tiny
from tests.train.rows import make_rows, quick

#: TRL and datasets warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

NUM_STEPS = 3
RATE = 3e-3


def trl_trainer(name: str, rows: list[PairRow], root: Path, trl: dict[str, Any]) -> Any:
    """TRL's trainer on prompts and answers as our renderer writes them, all rows in every batch."""
    from datasets import Dataset, Features, Image, List, Value
    from trl import DPOConfig, DPOTrainer

    loaded = tiny(name)
    renderer = Renderer(loaded.processor)
    table = []
    for row in rows:
        chat = open_context(row.context, root, MediaLimits(), row.id)
        texts = {"prompt": renderer.prompt(chat)}
        texts |= {side: renderer.answer(chat, getattr(row, side)) for side in ("chosen", "rejected")}
        images = {"images": [media.image for media in chat.media]} if chat.media else {}
        table.append({**texts, **images})
    columns: dict[str, Any] = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
    if "images" in table[0]:
        columns["images"] = List(Image())
    config = DPOConfig(
        output_dir=str(root / "trl"),
        per_device_train_batch_size=len(rows),
        max_steps=NUM_STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **trl,
    )
    loaded.model.requires_grad_(True)
    return DPOTrainer(
        model=loaded.model,
        ref_model=copy.deepcopy(loaded.model),
        args=config,
        train_dataset=Dataset.from_list(table, features=Features(columns)),
        processing_class=loaded.processor,
    )


def trl_losses(trainer: Any) -> list[float]:
    """Run TRL's whole training; its loss before every step, unrounded."""
    losses = []
    original = trainer.compute_loss

    def recording(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        losses.append(float(found[0] if isinstance(found, tuple) else found))
        return found

    trainer.compute_loss = recording
    trainer.train()
    return losses


def sequences(inputs: Mapping[str, torch.Tensor], completion_mask: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """Sequences without padding, each with its completion tokens, in an order of their own."""
    ids, present, marked = inputs["input_ids"], inputs["attention_mask"].bool(), completion_mask.bool()
    return sorted((ids[row][present[row]].tolist(), ids[row][marked[row]].tolist()) for row in range(len(ids)))


@pytest.mark.parametrize(
    ("name", "objective", "trl"),
    [
        ("qwen2.5-vl", DPO(), {}),
        ("qwen3-vl", DPO(beta=0.3), {"beta": 0.3}),
        ("llava", DPO(), {}),
        ("llama", DPO(), {}),
        ("llama", RobustDPO(flip_rate=0.1), {"loss_type": "robust", "label_smoothing": 0.1}),
        (
            "qwen3-vl",
            DPO(label_smoothing=0.1),
            {"loss_type": ["sigmoid", "robust"], "loss_weights": [1.8, -0.8], "label_smoothing": 0.1},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_losses_of_a_whole_training_are_those_of_trl(
    tmp_path: Path, name: str, objective: Objective, trl: dict[str, Any]
) -> None:
    rows = make_rows(tmp_path, 4, pictures=0 if name in READING else 1)
    trainer = trl_trainer(name, rows, tmp_path, trl)

    batch = next(iter(trainer.get_train_dataloader()))
    ours = Collator(Renderer(tiny(name).processor), tmp_path, MediaLimits())(rows)
    same_tokens = sequences(batch, batch["completion_mask"]) == sequences(ours.inputs, ours.completion_mask)
    assert same_tokens, "the comparison means nothing unless both train on the same tokens"
    if name not in READING:
        assert batch["pixel_values"].numel() == ours.inputs["pixel_values"].numel()

    expected = trl_losses(trainer)
    config = quick(
        learning_rate=RATE, epochs=NUM_STEPS, micro_batch_size=2, lora=None, freeze_vision=False, max_length=None
    )
    PreferenceTrainer(tiny(name), rows, objective, config, tmp_path, tmp_path / "run", quiet=True).train()
    found = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(set(found)) == NUM_STEPS
    assert found == pytest.approx(expected, abs=1e-5)
