"""`PreferenceTrainer`: pairs and an objective in, an adapter or a model out.

One loop on accelerate. What comes out depends on pairs, weights, objective and settings only: not on the micro-batch
size, not on interruptions, not on the number of processes (but for adapter dropout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mmalign.errors import Interrupted, TrainError
from mmalign.lm.load import Loaded
from mmalign.lm.quantize import is_quantized
from mmalign.media.read import MediaLimits
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.train.beside import Beside
from mmalign.train.cache.keys import rows_key, short_key, template_key, versions, weights_key
from mmalign.train.cache.reference import Measured
from mmalign.train.config import FREE_KEYS, TrainConfig
from mmalign.train.data.arrange import twins_of
from mmalign.train.data.collate import Collator
from mmalign.train.data.lengths import short_enough
from mmalign.train.data.modality import modality
from mmalign.train.data.needs import prepared
from mmalign.train.data.spans import with_phrases
from mmalign.train.distributed.ranks import Ranks
from mmalign.train.forward import Forward
from mmalign.train.interrupt import Stop, stop_on_signals
from mmalign.train.metrics import MetricsLog
from mmalign.train.optimizer import adamw
from mmalign.train.output.checkpoint import Checkpoints
from mmalign.train.output.saving import Kind, Output, TrainResult, Types
from mmalign.train.preparing import Preparation
from mmalign.train.progress import Meter, note_of
from mmalign.train.reward.gate import fit_gate
from mmalign.train.reward.heads import RewardHead, freeze_output_layer, reads_logps
from mmalign.train.run import Run
from mmalign.train.schedule import Order, lr_factor, micro_batch_size
from mmalign.train.sources import Sources
from mmalign.train.step import sides_of, values_of
from mmalign.train.stepping import Stepper
from mmalign.train.trackers import refuse_unknown, settings_of, tracked
from mmalign.train.weights import trainable, training_mode


def begin(loaded: Loaded, rows: Sequence[PairRow], objective: Objective, config: TrainConfig) -> list[PairRow]:
    """Set torch's threads; the rows with all that the objective reads of them.

    Raises TrainError for pairs and settings that cannot be trained with, whatever they hold.
    """
    if not rows:
        raise TrainError("there are no pairs to train on; look at the yield and the quarantine of the generation")
    found = prepared(rows, objective, config)
    refuse_unknown(config.report_to)
    if not config.precompute_reference and hasattr(loaded.model, "peft_config"):
        raise TrainError(
            "train.precompute_reference is false, but the model comes with an adapter, which is part of the "
            "reference; set it to true"
        )
    if config.lora is None and is_quantized(loaded.model):
        raise TrainError(
            "train.lora is null, but the model's weights are quantized; only adapters are trained on those"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    return found


class PreferenceTrainer:
    """Trains `loaded.model`, in place, on `rows` to minimise `objective`.

    Everything is kept in the folder `output`: `checkpoints/`, `reference/`, `metrics.jsonl`, and at the end `adapter/`
    or `model/` with `result.json`. Run again with the same arguments it goes on from the newest checkpoint, or hands
    back the finished result. `data_root` is the folder that media paths are relative to, `limits` are those of the
    pairs' making. `start_key` names the weights that training starts from, where they come out of a computation that
    need not give the same last bits again; `measured` are the lengths of the rows where they are known. The trained
    weights are in `output` and, when the last call did train, in `model`. A reward model's head is saved beside them
    (`mmalign.train.reward.scoring` scores with it) and is `reward_head` here.

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
        rows = begin(loaded, rows, objective, config)
        self.objective, self.config, self.output = objective, config, output
        self.rows, self._num_given = with_phrases(rows, objective), len(rows)
        self.processor = loaded.processor
        kinds = [modality(row, loaded.renderer) for row in self.rows]
        sides = sides_of(objective, self.rows)
        limits = limits or MediaLimits()
        start = start_key or weights_key(loaded.model)
        sources = Sources.of(loaded, objective, config)
        self._types = Types.found(loaded.model)
        torch.manual_seed(config.seed)
        is_new = config.lora is not None and not hasattr(loaded.model, "peft_config")
        self.model = trainable(loaded.model, config)
        if not reads_logps(objective):
            freeze_output_layer(self.model)
        ranks = Ranks(self.model, config, output)
        head = RewardHead.of(self.model, objective, self.rows, config, ranks.device)
        # ZeRO-3 learns the order of modules from the first forward, so there all of them run.
        is_new = is_new and not ranks.shares_weights
        forward = Forward.of(self.model, objective, config, sources, head, adapter_is_new=is_new)
        processor_key = template_key(loaded)
        forms = [start, asdict(limits), sides, config.precision, processor_key]
        self._run = Run(
            loaded=loaded,
            model=self.model,
            rows=self.rows,
            kinds=kinds,
            sides=sides,
            objective=objective,
            config=config,
            output=output,
            ranks=ranks,
            forward=forward,
            beside=Beside(objective, head, ranks.device),
            pass_key=short_key([*forms, forward.scores_reference, forward.head is not None, versions()]),
            processor_key=processor_key,
            is_quiet=quiet or not ranks.is_first,
        )
        self._measured = measured
        self._size = micro_batch_size(objective, config, kinds, ranks.count)
        self._collate = Collator(
            loaded.renderer, data_root, limits, sides, values=values_of(objective), states=forward.reads_states
        )
        settings = {key: value for key, value in asdict(config).items() if key not in FREE_KEYS}
        others = {name: weights_key(source.model) for name, source in sources.models.items()}
        self.run_key = short_key(
            [*forms, rows_key(self.rows), repr(objective), settings, *([others] if others else [])]
        )
        self._result = Output(folder=output, run_key=self.run_key)

    @property
    def reward_head(self) -> RewardHead | None:
        """The head that is trained, where the objective is that of a reward model."""
        return self._run.beside.head

    def train(self) -> TrainResult:
        """Train to the end, from wherever an earlier call was interrupted.

        Raises Interrupted, with everything on disk to go on, after the first SIGINT or SIGTERM.
        """
        if (done := self._result.found()) is not None:
            return done
        with stop_on_signals() as stop:
            return self._train(stop)

    def _train(self, stop: Stop) -> TrainResult:
        run, ranks, config = self._run, self._run.ranks, self.config
        model, optimizer = ranks.prepare(self.model, adamw(self.model, config))
        run.forward.to(ranks.device)
        preparation = Preparation(run, stop)
        collate = preparation.collator(self._collate)
        measured = preparation.measure(collate, self._measured)
        kept = short_enough(self.rows, measured.lengths, config)
        order = Order(
            len(kept), config.batch_size, config.epochs, config.seed, twins_of([self.rows[index] for index in kept])
        )
        checkpoints = Checkpoints(
            folder=self.output / "checkpoints",
            run_key=self.run_key,
            keep=config.keep_checkpoints,
            rank=ranks.index,
            wait=ranks.wait,
        )
        start = checkpoints.resume(self.model, optimizer)
        if start:
            run.beside.load(checkpoints.beside())
        elif (head := self.reward_head) is not None and head.spec.name == "gated":
            rows, kinds = [self.rows[index] for index in kept], [run.kinds[index] for index in kept]
            fit_gate(head, self.model, collate, rows, kinds, config, ranks)
        log = MetricsLog(self.output / "metrics.jsonl")
        if ranks.is_first:
            log.rewind(start)
        training_mode(self.model)
        stepper, meter = Stepper(run, model, optimizer, collate, measured, self._size), Meter(ranks.device)
        line = run.line("training", order.num_steps, start, "steps")
        with tracked(ranks.accelerator, settings_of(self.objective, config)), line:
            for step in range(start, order.num_steps):
                rate = config.learning_rate * lr_factor(step, order.num_steps, config.warmup_ratio, config.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                indices = [kept[index] for index in order.batch(step)]
                run.beside.progress = step / order.num_steps
                values = stepper.step(indices)
                values = {"step": step + 1, "epoch": (step + 1) / order.steps_per_epoch, "lr": rate, **values}
                if ranks.is_first:
                    log.append(values)
                speed = meter.step(int(measured.lengths[indices].sum()))
                ranks.accelerator.log({**values, **speed}, step=step + 1)
                line.advance(note=note_of(values, speed))
                is_stopped = stop.agreed()
                every = config.checkpoint_every_steps
                if is_stopped or (every and (step + 1) % every == 0):
                    if ranks.is_first:
                        log.sync()
                    checkpoints.save(step + 1, self.model, optimizer, run.beside.state())
                if is_stopped:
                    raise Interrupted(
                        f"interrupted after step {step + 1} of {order.num_steps}; a checkpoint is written, run the "
                        "same command again to go on"
                    )
        if ranks.is_first:
            log.sync()
        return self._save(len(kept), order.num_steps)

    def _save(self, num_pairs: int, steps: int) -> TrainResult:
        """Write the result, by all ranks together."""
        ranks = self._run.ranks
        self.model.eval()
        kind: Kind = "model" if self.config.lora is None else "adapter"
        weights = ranks.whole_weights(self.model, kind)
        if kind == "model" and (weights is not None or not ranks.shares_weights):
            weights = self._types.restore(self.model, weights)
        if ranks.is_first:
            told = {"num_pairs": num_pairs, "num_dropped": self._num_given - num_pairs, "steps": steps}
            self._result.save(self.model, self.processor, kind, told, weights, beside=self._run.beside.save)
        ranks.wait()
        result = self._result.found()
        assert result is not None
        return result
