"""Whole trainings by both trainers: same model, pictures, texts, order, adapters and rate; what they took and gave."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, Objective
from mmalign.pairs import PairRow
from mmalign.train.cache.reference import FirstPass
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.data.context import open_context
from mmalign.train.metrics import MetricsLog, read_metrics
from mmalign.train.schedule import Order
from mmalign.train.trainer import PreferenceTrainer
from mmalign.train.weights import trainable

#: Large enough for losses to move within a few steps.
RATE = 1e-3
#: The most that losses of the same training may differ by.
SAME = 1e-5


@dataclass(frozen=True)
class Moment:
    """The clock and the processor seconds of this process."""

    clock: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.clock - other.clock, self.processor - other.processor)

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.clock + other.clock, self.processor + other.processor)


@dataclass(frozen=True)
class Took:
    """What a training took: `start` before the first pair is computed (start-up checks), the reference's pass over all
    pairs, and the steps. `losses` are those before every step.
    """

    start: Moment
    first_pass: Moment
    steps: Moment
    losses: list[float]

    @property
    def work(self) -> Moment:
        """All that every pair costs."""
        return self.first_pass + self.steps


def settings(batch: int, **changes: Any) -> TrainConfig:
    """A step is one forward; nothing decays, warms up or is clipped that TRL does otherwise."""
    same: dict[str, Any] = {
        "learning_rate": RATE,
        "batch_size": batch,
        "micro_batch_size": batch,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "max_length": None,
        "checkpoint_every_steps": 0,
        "lora": LoraConfig(),
    }
    return TrainConfig(**{**same, **changes})


# Ours ----------------------------------------------------------------------------------------------------------------


class Ours:
    """`PreferenceTrainer` on `rows`, in `folder`, which keeps the caches of earlier trainings unless it is emptied."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        rows: Sequence[PairRow],
        root: Path,
        config: TrainConfig,
        folder: Path,
        objective: Objective = DPO(),  # noqa: B008 (frozen)
    ) -> None:
        self._load, self._rows, self._root, self._folder, self._objective = load, rows, root, folder, objective
        self._config = replace(config, feature_cache=folder / "features")

    def train(self, *, cold: bool) -> Took:
        """One training; a cold one has no caches to read from."""
        if cold:
            shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("adapter", "checkpoints"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for name in ("result.json", "metrics.jsonl"):
            (self._folder / name).unlink(missing_ok=True)
        trainer = self.trainer()
        begun = _now()
        with _moments() as seen:
            trainer.train()
        losses = [line["loss"] for line in read_metrics(self._folder / "metrics.jsonl")]
        passed, measured, last = seen["pass"], seen["measured"], seen["step"]
        return Took(passed - begun, measured - passed, last - measured, losses)

    def trainer(self) -> PreferenceTrainer:
        """A trainer of a fresh model."""
        return PreferenceTrainer(
            self._load(), self._rows, self._objective, self._config, self._root, self._folder, quiet=True
        )


@contextmanager
def _moments() -> Iterator[dict[str, Moment]]:
    """When the first pass began and ended, and when the last step ended."""
    seen: dict[str, Moment] = {}
    run, append = FirstPass.run, MetricsLog.append

    def running(self: FirstPass, *args: Any, **kwargs: Any) -> Any:
        seen["pass"] = _now()
        found = run(self, *args, **kwargs)
        seen["measured"] = _now()
        return found

    def appending(self: MetricsLog, values: Any) -> None:
        append(self, values)
        seen["step"] = _now()

    with patch.object(FirstPass, "run", running), patch.object(MetricsLog, "append", appending):
        yield seen


# TRL's ---------------------------------------------------------------------------------------------------------------


class Theirs:
    """TRL's `DPOTrainer` on the same pairs in the same order."""

    def __init__(
        self, load: Callable[[], Loaded], rows: Sequence[PairRow], root: Path, config: TrainConfig, folder: Path
    ) -> None:
        self._load, self._rows, self._root, self._config, self._folder = load, rows, root, config, folder

    def train(self) -> Took:
        """One training."""
        trainer = self.trainer()
        losses: list[float] = []
        original = trainer.compute_loss

        def recording(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            losses.append(float(found[0] if isinstance(found, tuple) else found))
            return found

        trainer.compute_loss = recording
        begun = _now()
        trainer.train()
        nothing = begun - begun
        return Took(nothing, nothing, _now() - begun, losses)

    def trainer(self) -> Any:
        """A trainer of a fresh model, whose adapters begin as ours do."""
        from datasets import Dataset, Features, Image, List, Value
        from peft import LoraConfig as PeftLora
        from torch.utils.data import SequentialSampler
        from transformers.trainer_callback import PrinterCallback
        from trl import DPOConfig, DPOTrainer

        loaded, config = self._load(), self._config
        columns: dict[str, Any] = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
        table = Dataset.from_list(self._table(loaded), features=Features({**columns, "images": List(Image())}))
        ours = self._start()
        own = next(iter(ours.peft_config.values()))
        on_cpu = next(loaded.model.parameters()).device.type == "cpu"
        arguments = DPOConfig(
            output_dir=str(self._folder),
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=1,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            activation_checkpointing=config.gradient_checkpointing,
            bf16=config.precision == "bf16",
            use_cpu=on_cpu,
            max_length=None,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = DPOTrainer(
                model=loaded.model,
                args=arguments,
                train_dataset=table,
                processing_class=loaded.processor,
                peft_config=PeftLora(
                    r=own.r,
                    lora_alpha=own.lora_alpha,
                    lora_dropout=0.0,
                    target_modules=own.target_modules,
                    task_type="CAUSAL_LM",
                ),
            )
        trainer.remove_callback(PrinterCallback)
        trainer._get_train_sampler = lambda *_: SequentialSampler(table)
        weights = {name: weight for name, weight in ours.named_parameters() if "lora_" in name}
        found = {name: weight for name, weight in trainer.model.named_parameters() if "lora_" in name}
        assert weights.keys() == found.keys(), "both train the same adapters"
        with torch.no_grad():
            for name, weight in found.items():
                weight.copy_(weights[name])
        return trainer

    def _start(self) -> Any:
        """Our model before its first step."""
        loaded = self._load()
        torch.manual_seed(self._config.seed)
        return trainable(loaded.model, self._config)

    def _table(self, loaded: Loaded) -> list[dict[str, Any]]:
        """Prompts and answers as our renderer writes them, in the order of our steps."""
        config, renderer = self._config, loaded.renderer
        order = Order(len(self._rows), config.batch_size, 1, config.seed)
        table = []
        for step in range(order.num_steps):
            for row in (self._rows[index] for index in order.batch(step)):
                chat = open_context(row.context, self._root, MediaLimits(), row.id)
                texts = {side: renderer.answer(chat, getattr(row, side)) for side in ("chosen", "rejected")}
                images = [media.image for media in chat.media]
                table.append({"prompt": renderer.prompt(chat), **texts, "images": images})
        return table


def _now() -> Moment:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Moment()


def assert_same(one: Took, other: Took) -> None:
    """Both trainings did the same."""
    assert len(one.losses) == len(other.losses) > 1
    worst = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    assert worst <= SAME, f"losses differ by {worst:.2g}: {one.losses} and {other.losses}"
    assert len({round(loss, 4) for loss in one.losses}) > 1, "nothing was trained"
