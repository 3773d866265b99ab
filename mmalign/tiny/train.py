"""Makes the embedded model from nothing: `python -m mmalign.tiny.train --out DIR`. One seed, one thread, one command.

First the vision tower learns what each image token shows (dense labels, exact from the drawing); then the whole model
learns captions and questions about pictures, later about clips as well. A checkpoint is written every few minutes; the
same command goes on from it. With `--start FOLDER` a model is taught further instead of from nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmalign.tiny import lessons, network
from mmalign.tiny.build import build_config, build_model, build_processor, save
from mmalign.tiny.card import write_card
from mmalign.tiny.checkpoint import load_checkpoint, save_checkpoint
from mmalign.tiny.measure import as_json, measure
from mmalign.tiny.packing import IGNORE, Batch
from mmalign.tiny.world import stream

#: Allocator settings without which page faults cost more than the arithmetic.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the weights. `start` is a model folder; the words that it knows keep their embeddings."""

    seed: int = 0
    start: str = ""
    vision_steps: int = 1000
    steps: int = 4400
    early: int = 500
    clips_from: int = 800
    clip_share: float = 0.65
    long_share: float = 0.35
    # Which of two events comes first, turned round by "after", is learnt only once "before" alone has been.
    after_early: float = 0.1
    after_from: int = 2400
    vision_lr: float = 4e-3
    lr: float = 1.5e-3
    hold: float = 0.375
    slip: float = 1.15  # how much more often detail captions slip, from step `slip_from` on
    slip_from: int = 1400
    floor: float = 0.03


def step_kind(plan: Plan, step: int) -> str:
    """'early', 'picture', 'clip8' or 'clip16': what a step teaches."""
    if step < plan.early:
        return "early"
    rng = stream("kind", plan.seed, step)
    if step >= plan.clips_from and rng.random() < plan.clip_share:
        return "clip16" if rng.random() < plan.long_share else "clip8"
    return "picture"


def language_batch(plan: Plan, step: int) -> Batch:
    """The batch of one step of the second phase."""
    kind = step_kind(plan, step)
    if kind.startswith("clip"):
        after = 0.5 if step >= plan.after_from else plan.after_early
        return lessons.clip_batch(plan.seed, step, int(kind[4:]), after=after)
    slip = plan.slip if step >= plan.slip_from else 1.0
    return lessons.picture_batch(plan.seed, step, early=kind == "early", slip=slip)


def vision_batch(plan: Plan, step: int) -> Any:
    return lessons.dense_batch(plan.seed, step)


def _produce(make: Callable[[int], Any], begin: int, end: int, out: Any) -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    for step in range(begin, end):
        batch = make(step)
        while True:
            try:
                out.put((step, batch), timeout=5)
                break
            except queue.Full:
                if parent is None or not parent.is_alive():
                    return


def ahead(make: Callable[[int], Any], begin: int, end: int) -> Iterator[tuple[int, Any]]:
    """Batches `begin` to `end` in order, made by a process of their own a few steps ahead."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue(maxsize=6)
    worker = context.Process(target=_produce, args=(make, begin, end, out), daemon=True)
    worker.start()
    try:
        for _ in range(begin, end):
            while True:
                try:
                    yield out.get(timeout=60)
                    break
                except queue.Empty:
                    if not worker.is_alive():
                        raise RuntimeError("the process that makes the batches has died") from None
    finally:
        worker.terminate()


def rate(plan: Plan, step: int, steps: int, hold: float) -> float:
    """Share of the full learning rate: short warm-up, constant for `hold`, then a cosine down to the floor."""
    if step < 20:
        return (step + 1) / 20
    part = max(0.0, (step / steps - hold) / (1 - hold))
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, norms and biases."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, weight in module.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.75 * lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["full"] = group["lr"]
    return [muon, adamw]


def descend(parts: list[torch.optim.Optimizer], module: nn.Module, loss: Tensor, share: float) -> None:
    """One step at `share` of the full learning rate."""
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in parts:
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Log:
    """Running means of the last steps, printed and appended to metrics.jsonl."""

    def __init__(self, out: Path, phase: str) -> None:
        self.path, self.phase = out / "metrics.jsonl", phase
        self.sums: dict[str, tuple[float, float]] = {}
        self.began = time.monotonic()

    def add(self, name: str, value: float, number: float = 1.0) -> None:
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + value, count + number)

    def flush(self, step: int) -> None:
        means = {name: round(total / max(count, 1), 4) for name, (total, count) in sorted(self.sums.items())}
        row = {"phase": self.phase, "step": step, "seconds": round(time.monotonic() - self.began, 1), **means}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self.sums.clear()


class DenseHeads(nn.Module):
    """Linear readouts of kind, colour and size from image tokens; dropped after the first phase."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(hidden, size) for size in (17, 9, 3))

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Summed cross-entropy and the accuracies where something is shown."""
        loss, right = tokens.new_zeros(()), []
        for head, wanted in zip(self.heads, labels, strict=True):
            logits = head(tokens).float()
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
            shown = wanted > 0
            right.append((logits.argmax(-1) == wanted)[shown].float().mean().item())
        return loss, right


def train_vision(plan: Plan, model: Any, out: Path) -> None:
    """First phase: the vision tower alone, on dense labels."""
    visual = model.model.visual
    heads = DenseHeads(model.config.text_config.hidden_size)
    both = nn.ModuleList([visual, heads])
    parts = optimizers(both, plan.vision_lr)
    log = Log(out, "vision")
    begin = load_checkpoint(out / "vision.safetensors", both, parts)
    for step, (patches, labels) in ahead(partial(vision_batch, plan), begin, plan.vision_steps):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = network.see(visual, network.normalise(torch.from_numpy(patches)))
            loss, right = heads(tokens, torch.from_numpy(labels))
        descend(parts, both, loss, rate(plan, step, plan.vision_steps, 0.2))
        for name, value in zip(("loss", "kind", "colour", "size"), (loss.item(), *right), strict=True):
            log.add(name, value)
        if (step + 1) % 50 == 0:
            log.flush(step + 1)
        if (step + 1) % 250 == 0 or step + 1 == plan.vision_steps:
            save_checkpoint(out / "vision.safetensors", both, parts, step + 1)


def language_loss(model: Any, batch: Batch, log: Log) -> Tensor:
    """Weighted cross-entropy at the answer tokens; logs cross-entropy per lesson and accuracy of yes and no."""
    ids, places, segment = (torch.from_numpy(x) for x in (batch.ids, batch.places, batch.segment))
    labels, weights, tags = (torch.from_numpy(x) for x in (batch.labels, batch.weights, batch.tags))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.read(model, ids, places, segment, network.normalise(torch.from_numpy(batch.patches)))
        logits, wanted = network.answers(model, hidden, labels)
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    weight, tag = weights[labels != IGNORE], tags[labels != IGNORE]
    with torch.no_grad():
        said = torch.tensor([model.yes_id, model.no_id])
        verdicts = (wanted[:, None] == said).any(-1)
        right = (logits.argmax(-1) == wanted).float()
        for at, name in enumerate(lessons.TAGS):
            of = tag == at
            if of.any():
                log.add(name, losses[of].sum().item(), of.sum().item())
                if name in lessons.YES_NO:
                    log.add(f"{name}_right", right[of & verdicts].sum().item(), (of & verdicts).sum().item())
                else:
                    log.add(f"{name}_right", right[of].sum().item(), of.sum().item())
    return (losses * weight).sum() / weight.sum()


def train_language(plan: Plan, model: Any, processor: Any, out: Path, every: int) -> None:
    """Second phase: everything, on packed captions and questions."""
    model.yes_id, model.no_id = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    parts = optimizers(model, plan.lr)
    log = Log(out, "language")
    begin = load_checkpoint(out / "language.safetensors", model, parts)
    for step, batch in ahead(partial(language_batch, plan), begin, plan.steps):
        loss = language_loss(model, batch, log)
        descend(parts, model, loss, rate(plan, step, plan.steps, plan.hold))
        log.add("loss", loss.item())
        if (step + 1) % 25 == 0:
            log.flush(step + 1)
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            save_checkpoint(out / "language.safetensors", model, parts, step + 1)
            save(model, processor, out / "model")


def begin_from(model: Any, tokenizer: Any, folder: Path) -> None:
    """Give `model` the weights in `folder`, and each word that both vocabularies hold its embedding from there."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    weights = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    mine = model.state_dict()
    for name, value in weights.items():
        if value.shape == mine[name].shape and "embed_tokens" not in name and "lm_head" not in name:
            mine[name].copy_(value)
    table, learned = model.get_input_embeddings().weight, weights["model.language_model.embed_tokens.weight"]
    with torch.no_grad():
        for word, at in tokenizer.get_vocab().items():
            if word in known:
                table[at] = learned[known[word]]


def train(plan: Plan, out: Path, every: int = 150) -> None:
    """Train by the plan into `out`: checkpoints, metrics.jsonl and `out/model`, which the Auto classes load.

    Raises ValueError when `out` holds a run of another plan.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    record = out / "plan.json"
    if record.exists() and json.loads(record.read_text()) != asdict(plan):
        raise ValueError(f"{record} is of another plan; give another --out or remove it")
    record.write_text(json.dumps(asdict(plan), indent=1))
    torch.manual_seed(plan.seed)
    processor = build_processor()
    model = build_model(build_config(processor.tokenizer))
    if plan.start:
        begin_from(model, processor.tokenizer, Path(plan.start))
    if not (out / "language.safetensors").exists():
        train_vision(plan, model, out)
    train_language(plan, model, processor, out, every)
    finish(plan, out)


def finish(plan: Plan, out: Path) -> None:
    """Measure the trained model and write `figures.json` and the model card beside its weights."""
    (out / "model" / "figures.json").write_text(as_json(measure(out / "model")))
    seconds, before = 0.0, 0.0
    for line in (out / "metrics.jsonl").read_text().splitlines():
        now = json.loads(line)["seconds"]
        seconds += now - before if now > before else now  # the clock starts again with each phase and each resumption
        before = now
    clip_steps = sum(step_kind(plan, step).startswith("clip") for step in range(plan.steps))
    write_card(out / "model", asdict(plan), f"{seconds / 60:.0f} minutes", clip_steps)


def main() -> None:
    """Parse the command line and train; restarts itself once with the allocator settings that make it fast."""
    parser = argparse.ArgumentParser(description="Train mmalign's embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, metrics and the model")
    parser.add_argument("--every", type=int, default=150, help="steps between checkpoints")
    for field in fields(Plan):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})
    out, every = options.pop("out"), options.pop("every")
    train(Plan(**options), out, every)


if __name__ == "__main__":
    main()
