"""`PreferenceTrainer`: pairs and an objective in, an adapter or a model out.

One loop on accelerate. What comes out depends on pairs, weights, objective and settings only: not on the micro-batch
size, not on interruptions, not on the number of processes (but for adapter dropout).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import Objective, refuse_unmet
from mmalign.pairs import PairRow
from mmalign.train.checkpoint import Checkpoints
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.config import FREE_KEYS, PROVIDED, TrainConfig
from mmalign.train.forward import Forward
from mmalign.train.keys import rows_key, short_key, template_key, weights_key
from mmalign.train.lengths import short_enough
from mmalign.train.metrics import MetricsLog
from mmalign.train.modality import modality
from mmalign.train.optimizer import adamw, autocast
from mmalign.train.progress import ProgressLine
from mmalign.train.reference import FirstPass, Measured
from mmalign.train.saving import Kind, Output, TrainResult
from mmalign.train.schedule import MicroBatch, Order, lr_factor, micro_batches
from mmalign.train.sharing import share_where_equal
from mmalign.train.spans import with_phrases
from mmalign.train.step import StepTotals, refuse_nonfinite, sides_of
from mmalign.train.weights import reaches_media, trainable, training_mode


def begin(loaded: Loaded, rows: Sequence[PairRow], objective: Objective, config: TrainConfig) -> None:
    """Set torch's threads. Raises TrainError for pairs and settings that cannot be trained with, whatever they hold."""
    if not rows:
        raise TrainError("there are no pairs to train on; look at the yield and the quarantine of the generation")
    try:
        refuse_unmet(objective, PROVIDED)
    except ValueError as error:
        raise TrainError(str(error)) from None
    if absent := sorted(set(config.report_to) - {str(name) for name in get_available_trackers()}):
        raise TrainError(f"train.report_to: {', '.join(absent)}: not installed or not known to accelerate")
    if not config.precompute_reference and hasattr(loaded.model, "peft_config"):
        raise TrainError(
            "train.precompute_reference is false, but the model comes with an adapter, which is part of the "
            "reference; set it to true"
        )
    if config.threads:
        torch.set_num_threads(config.threads)


class PreferenceTrainer:
    """Trains `loaded.model`, in place, on `rows` to minimise `objective`.

    Everything is kept in the folder `output`: `checkpoints/`, `reference/`, `metrics.jsonl`, and at the end `adapter/`
    or `model/` with `result.json`. Run again with the same arguments it goes on from the newest checkpoint, or hands
    back the finished result. `data_root` is the folder that media paths are relative to, `limits` are those of the
    pairs' making. `start_key` names the weights that training starts from, where they come out of a computation that
    need not give the same last bits again; `measured` are the lengths of the rows where they are known. The trained
    weights are in `output` and, when the last call did train, in `model`.

    Raises TrainError when there is nothing to train on, or what there is cannot be trained on.
    """

    def __init__(
        self,
        loaded: Loaded,
        rows: Sequence[PairRow],
        objective: Objective,
        config: TrainConfig,
        data_root: Path,
        output: Path,
        *,
        limits: MediaLimits | None = None,
        start_key: str | None = None,
        measured: Measured | None = None,
        quiet: bool = False,
    ) -> None:
        begin(loaded, rows, objective, config)
        self.objective, self.config, self.output = objective, config, output
        self.rows, self._num_given = with_phrases(rows, objective), len(rows)
        self._kinds = [modality(row, loaded.renderer) for row in self.rows]
        self.processor = loaded.processor
        self._measured = measured
        self._sides = sides_of(objective)
        limits = limits or MediaLimits()
        self._collate = Collator(loaded.renderer, data_root, limits, self._sides)
        start = start_key or weights_key(loaded.model)
        torch.manual_seed(config.seed)
        self.model = trainable(loaded.model, config)
        self._forward = Forward.of(self.model, objective, config)
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        # A step's last forward, which exchanges gradients, can be one about text alone.
        ranks = DistributedDataParallelKwargs(find_unused_parameters=reaches_media(self.model))
        self._accelerator = Accelerator(
            cpu=on_cpu, log_with=list(config.report_to) or None, project_dir=str(output), kwargs_handlers=[ranks]
        )
        forms = [start, asdict(limits), self._sides, config.precision, template_key(loaded), config.max_length]
        read = [self._forward.scores_reference, self._forward.head is not None]
        self._pass_key = short_key([*forms, rows_key(self.rows, labels=False), *read])
        settings = {key: value for key, value in asdict(config).items() if key not in FREE_KEYS}
        self.run_key = short_key([*forms, rows_key(self.rows, labels=True), repr(objective), settings])
        self._result = Output(folder=output, run_key=self.run_key)
        self._quiet = quiet or not self._accelerator.is_main_process

    def train(self) -> TrainResult:
        """Train to the end, from wherever an earlier call was interrupted."""
        if (done := self._result.found()) is not None:
            return done
        measured, kept = self._measure()
        accelerator, config = self._accelerator, self.config
        order = Order(len(kept), config.batch_size, config.epochs, config.seed)
        model, optimizer = accelerator.prepare(self.model, adamw(self.model, config))
        checkpoints = Checkpoints(
            folder=self.output / "checkpoints",
            run_key=self.run_key,
            keep=config.keep_checkpoints,
            rank=accelerator.process_index,
            wait=accelerator.wait_for_everyone,
        )
        start = checkpoints.resume(self.model, optimizer)
        log = MetricsLog(self.output / "metrics.jsonl")
        if accelerator.is_main_process:
            log.rewind(start)
        accelerator.init_trackers("mmalign", {"objective": repr(self.objective)})
        training_mode(self.model)
        with ProgressLine("training", order.num_steps, start, unit="steps", visible=not self._quiet) as line:
            for step in range(start, order.num_steps):
                rate = config.learning_rate * lr_factor(step, order.num_steps, config.warmup_ratio, config.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                indices = [kept[index] for index in order.batch(step)]
                values = self._step(model, optimizer, indices, measured)
                values = {"step": step + 1, "epoch": (step + 1) / order.steps_per_epoch, "lr": rate, **values}
                if accelerator.is_main_process:
                    log.append(values)
                accelerator.log(values, step=step + 1)
                line.advance(note=f"loss {values['loss']:.4f}")
                if config.checkpoint_every_steps and (step + 1) % config.checkpoint_every_steps == 0:
                    checkpoints.save(step + 1, self.model, optimizer)
        for tracker in accelerator.trackers:
            # Not `end_training`: that would also part the ranks, who have more to do.
            tracker.finish()
        self.model.eval()
        if accelerator.is_main_process:
            told = {"num_pairs": len(kept), "num_dropped": self._num_given - len(kept), "steps": order.num_steps}
            kind: Kind = "model" if config.lora is None else "adapter"
            self._result.save(self.model, self.processor, kind, told)
        accelerator.wait_for_everyone()
        result = self._result.found()
        assert result is not None
        return result

    # One optimizer step ----------------------------------------------------------------------------------------------

    def _step(self, model: Any, optimizer: Any, indices: list[int], measured: Measured) -> dict[str, float]:
        accelerator = self._accelerator
        parts = micro_batches(
            indices,
            self._kinds,
            accelerator.process_index,
            accelerator.num_processes,
            self.config.micro_batch_size,
        )
        tokens = measured.counts[indices].sum(0).tolist()
        totals = StepTotals(len(indices), dict(zip(self._sides, tokens, strict=True)))
        sums: dict[str, Tensor] = {}
        for part in parts:
            # Ranks exchange gradients once per step.
            with nullcontext() if part is parts[-1] else accelerator.no_sync(model):
                found = self._micro_step(model, part, totals, measured)
            sums = {name: sums.get(name, torch.zeros_like(value)) + value for name, value in found.items()}
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        if not math.isfinite(norm):
            ids = ", ".join(self.rows[index].id for index in indices)
            raise TrainError(f"the gradient is not finite at the pairs {ids}; lower train.learning_rate or drop them")
        optimizer.step()
        optimizer.zero_grad()
        values = {name: float(accelerator.reduce(value, reduction="sum")) for name, value in sums.items()}
        return {**values, "grad_norm": float(norm)}

    def _micro_step(self, model: Any, part: MicroBatch, totals: StepTotals, measured: Measured) -> dict[str, Tensor]:
        """Forward and backward of some pairs; their share of the step's numbers."""
        accelerator = self._accelerator
        batch = self._collate([self.rows[index] for index in part.indices]).to(accelerator.device)
        counted = (torch.arange(len(part.indices)) < part.num_counted).float().to(accelerator.device)
        output = self.objective(self._forward.inputs(model, batch, part.indices, measured))
        loss = totals.loss(output, batch.weight * counted)
        refuse_nonfinite(output, batch.ids)
        # Distributed training averages gradients over ranks; the loss is already divided by the whole step.
        accelerator.backward(loss * accelerator.num_processes)
        shares = {name: (value * counted).sum() / totals.pairs for name, value in output.metrics.items()}
        return {"loss": loss.detach(), **shares}

    # Before the first step -------------------------------------------------------------------------------------------

    def _measure(self) -> tuple[Measured, list[int]]:
        """The first pass, and the indices of the pairs that are short enough."""
        accelerator, config = self._accelerator, self.config
        self.model.to(accelerator.device)
        self._forward.to(accelerator.device)
        if config.shared_prefix == "auto":
            self._collate = share_where_equal(
                self.model,
                self._collate,
                self.rows,
                self._kinds,
                size=config.micro_batch_size,
                max_length=config.max_length,
                autocast=partial(autocast, accelerator.device, config),
                device=accelerator.device,
            )
        if self._measured is not None and not self._forward.scores_reference:
            return self._measured, short_enough(self.rows, self._measured.lengths, config)
        first_pass = FirstPass(
            folder=self.output / "reference",
            key=self._pass_key,
            collate=self._collate,
            score=self._score if self._forward.scores_reference else None,
            batch_size=config.micro_batch_size,
            max_length=config.max_length,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        )
        what = "reference" if self._forward.scores_reference else "measuring"
        with ProgressLine(what, len(self.rows), unit="pairs", visible=not self._quiet) as line:
            measured = first_pass.run(self.rows, line.advance)
        return measured, short_enough(self.rows, measured.lengths, config)

    def _score(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        return self._forward.reference(self.model, batch.to(self._accelerator.device))
