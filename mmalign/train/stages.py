"""Curricula: one stage of pairs after the other, each with a reference of its own.

TEMPLE (Li et al. 2025, arXiv 2503.16929): pairs from easy to hard; after each stage the adapter becomes part of the
weights, and the next stage starts there with a fresh adapter and optimizer, and with that start as its reference.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file

from mmalign.atomic import replacing
from mmalign.errors import TrainError
from mmalign.lm.load import Loaded
from mmalign.lm.quantize import is_quantized
from mmalign.media.read import MediaLimits
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.train.cache.keys import short_key, template_key
from mmalign.train.cache.reference import FirstPass, Measured
from mmalign.train.config import TrainConfig
from mmalign.train.data.arrange import arranged
from mmalign.train.data.collate import Collator
from mmalign.train.data.curriculum import Curriculum, curriculum
from mmalign.train.distributed.launch import asks_to_share
from mmalign.train.interrupt import stop_on_signals
from mmalign.train.logprobs.head import unwrapped
from mmalign.train.metrics import read_metrics
from mmalign.train.output.saving import TrainResult
from mmalign.train.progress import ProgressLine
from mmalign.train.trainer import PreferenceTrainer, begin
from mmalign.train.weights import merged_exactly

log = logging.getLogger("mmalign.train")


def train_pairs(
    loaded: Loaded,
    rows: Sequence[PairRow],
    objective: Objective,
    config: TrainConfig,
    data_root: Path,
    output: Path,
    *,
    limits: MediaLimits | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train on what `config.arrange` makes of the rows, in one run or in stages as `config.stages` says.

    Arguments and result are those of `PreferenceTrainer`.
    """
    rows = arranged(rows, config)
    if config.stages == "renew":
        return train_stages(loaded, rows, objective, config, data_root, output, limits=limits, quiet=quiet)
    return PreferenceTrainer(loaded, rows, objective, config, data_root, output, limits=limits, quiet=quiet).train()


def train_stages(
    loaded: Loaded,
    rows: Sequence[PairRow],
    objective: Objective,
    config: TrainConfig,
    data_root: Path,
    output: Path,
    *,
    limits: MediaLimits | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train on one stage after the other; arguments and result are those of `PreferenceTrainer`.

    All pairs are measured, and their media opened, before the first stage, so a wrong one of the last stage is found
    then. Every stage is a run of its own in `output/<stage>` and goes on where it was interrupted. At the end `output`
    holds `metrics.jsonl` over all steps and `model/`, or `adapter/`: the sum of the stages' adapters as one, whose rank
    is the sum of their ranks, for the model that the first stage started from. The result counts a pair once, in
    however many stages it was. From the second stage on, layers with adapters are held in float32.
    """
    rows = begin(loaded, rows, objective, config)
    if any(need.startswith("head:") for need in objective.needs):
        raise TrainError(
            f"train.stages: renew gives every stage a new adapter, and objective {objective.name} would get a new head "
            "with it; set it to mixed"
        )
    why = "quantized weights" if is_quantized(loaded.model) else "FSDP2 or DeepSpeed" if asks_to_share() else ""
    if why:
        raise TrainError(
            f"train.stages is renew, where each stage's adapter becomes part of the weights, which {why} cannot do; "
            "set it to mixed"
        )
    limits = limits or MediaLimits()

    def measure(rows: list[PairRow], sides: tuple[str, ...]) -> Measured:
        return _measured(Collator(loaded.renderer, data_root, limits, sides), rows, loaded, config, output, quiet)

    plan = curriculum(rows, objective, config, measure)
    stages = plan.stages
    start_key: str | None = None
    results: list[TrainResult] = []
    for number, stage in enumerate(stages, 1):
        log.info("%s, %d of %d: %d pairs", stage.name, number, len(stages), len(stage.rows))
        folder = output / stage.name
        was_done = (folder / "result.json").exists()
        trainer = PreferenceTrainer(
            loaded,
            stage.rows,
            stage.objective,
            config,
            data_root,
            folder,
            limits=limits,
            start_key=start_key,
            measured=stage.measured,
            quiet=quiet,
        )
        results.append(trainer.train())
        start_key = trainer.run_key
        if was_done:
            _load_result(trainer.model, results[-1])
        if number < len(stages):
            loaded = Loaded(merged_exactly(trainer.model), loaded.processor, loaded.name)
    return _finish(trainer, plan, results, output)


def _measured(
    collate: Collator, rows: list[PairRow], loaded: Loaded, config: TrainConfig, output: Path, quiet: bool
) -> Measured:
    """Lengths of all pairs, without a model; every stage computes its reference itself, when it starts."""
    ranks = PartialState(cpu=next(loaded.model.parameters()).device.type == "cpu")
    forms = [asdict(collate.limits), collate.sides, template_key(loaded)]
    first_pass = FirstPass(
        folder=output / "lengths",
        key=short_key(forms),
        collate=collate,
        score=None,
        batch_size=config.micro_batch_size,
        max_length=config.max_length,
        rank=ranks.process_index,
        world=ranks.num_processes,
    )
    visible = ranks.is_main_process and not quiet
    with stop_on_signals() as stop, ProgressLine("measuring", len(rows), unit="pairs", visible=visible) as line:
        return replace(first_pass, stop=stop).run(rows, line.advance)


def _load_result(model: Any, result: TrainResult) -> None:
    """Give the model, as it was prepared for training, the weights of a finished stage."""
    if result.kind == "adapter":
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(result.path / "adapter_model.safetensors"))
        return
    kind: Any = type(unwrapped(model))
    saved = kind.from_pretrained(result.path, dtype="auto", use_safetensors=True, local_files_only=True)
    values = dict(saved.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data = values[name].data.to(parameter.device)


def _finish(trainer: PreferenceTrainer, plan: Curriculum, results: Sequence[TrainResult], output: Path) -> TrainResult:
    """Join what the stages left."""
    last = results[-1]
    lines = list(_lines(results))
    joined = replace(
        last,
        path=output / last.kind,
        num_pairs=plan.num_pairs,
        num_dropped=plan.num_dropped,
        steps=sum(result.steps for result in results),
        last=lines[-1],
    )
    state = {"run_key": trainer.run_key, **{key: value for key, value in asdict(joined).items() if key != "path"}}
    path = output / "result.json"
    ranks = PartialState()
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8"))["run_key"] != trainer.run_key:
            raise TrainError(
                f"{path}: is the result of other pairs, another model or other settings; train into an empty folder"
            )
    elif ranks.is_main_process:
        with replacing(output / last.kind) as partial:
            if last.kind == "model":
                shutil.copytree(last.path, partial)
            else:
                _save_sum(trainer.model, [result.path for result in results[:-1]], partial)
                trainer.processor.save_pretrained(partial)
        with replacing(output / "metrics.jsonl") as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        with replacing(path) as partial:
            partial.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    ranks.wait_for_everyone()
    return joined


def _lines(results: Sequence[TrainResult]) -> Iterator[dict[str, float]]:
    """The metrics of all stages, steps and epochs counted on."""
    steps, epochs = 0.0, 0.0
    for number, result in enumerate(results):
        line: dict[str, float] = {}
        for line in read_metrics(result.path.parent / "metrics.jsonl"):
            yield {**line, "step": int(steps + line["step"]), "epoch": epochs + line["epoch"], "stage": number}
        steps, epochs = steps + line["step"], epochs + line["epoch"]


def _save_sum(model: Any, earlier: Sequence[Path], path: Path) -> None:
    """Save the model's adapter with earlier ones added: low-rank factors side by side, which is exact."""
    names = [f"stage_{number}" for number in range(len(earlier))]
    with _quiet_peft():
        for name, folder in zip(names, earlier, strict=True):
            model.load_adapter(folder, adapter_name=name)
        names.append(model.active_adapter)
        model.add_weighted_adapter(names, [1.0] * len(names), "total", combination_type="cat")
        model.save_pretrained(path, selected_adapters=["total"], save_embedding_layers=False)
        for name in (*names[:-1], "total"):
            model.delete_adapter(name)
    for file in (path / "total").iterdir():
        file.rename(path / file.name)
    (path / "total").rmdir()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
