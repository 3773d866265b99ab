"""What a dry run says of a training: rendered pairs, what is computed once, and the memory and time it will take.

No weights are loaded and nothing is written.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch

from mmalign.errors import one_line
from mmalign.lm.load import device_of, load_outline
from mmalign.lm.render import Renderer
from mmalign.objectives import Objective
from mmalign.objectives.needs import meaning
from mmalign.pairs import PairRow, read_pairs
from mmalign.pipeline import limits_of, root_of
from mmalign.recipe.schema import Recipe
from mmalign.train.cache.keys import row_key
from mmalign.train.cache.parts import Parts
from mmalign.train.config import TrainConfig
from mmalign.train.data.arrange import arranged
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.modality import modality
from mmalign.train.data.needs import prepared
from mmalign.train.data.spans import with_phrases
from mmalign.train.forecasting.forecast import Forecast, Work, forecast
from mmalign.train.forecasting.speed import Speed, measured
from mmalign.train.step import reference_sides_of, sides_of, values_of

NUM_SHOWN = 3
#: Of every kind of media so many pairs are opened to know how long pairs are, those with the longest texts.
NUM_MEASURED = 8
#: Characters of a rendered prompt or an answer.
MAX_SHOWN = 240


@dataclass(frozen=True, slots=True)
class Opened:
    """A pair as it is trained on: all answers in the row of their prompt, and each in a row of its own.

    `is_first`: it is among the first of its kind, and not one of those with the longest texts.
    """

    row: PairRow
    kind: str
    is_first: bool
    shared: PairBatch
    plain: PairBatch
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that a forward computes."""
        return _num_tokens(self.shared)


def report(recipe: Recipe, renderer: Renderer) -> None:
    """Print what training would do.

    Raises TrainError or MediaError, naming the pair, for one that could not be trained on, and for an objective that
    needs what the pairs do not give.
    """
    path, train = recipe.data.pairs or recipe.output / "round-0" / "pairs.parquet", recipe.train
    what = "full training" if train.lora is None else f"LoRA of rank {train.lora.rank}"
    if not path.is_file() and recipe.data.pairs is None:
        print(f"training: {what}, {train.batch_size} pairs per step; {path} does not exist yet")
        return
    given = read_pairs(path)[: recipe.data.limit if recipe.data.pairs else None]
    rows = arranged(given, train)
    needs = sorted(recipe.objective.needs)
    print(f"training: {what} on {len(rows)} pairs, {num_steps(rows, train)} steps of {train.batch_size}")
    print(f"objective {recipe.objective.name} needs {', '.join(needs)}")
    rows = with_phrases(prepared(rows, recipe.objective, train), recipe.objective)
    for need in needs:
        if ":" in need:
            print(f"  {need}: {meaning(need)}")
    print(f"  all of it is given for {len(rows)} of {len(given)} pairs")
    collate = Collator(
        renderer,
        root_of(recipe),
        limits_of(recipe),
        sides_of(recipe.objective, rows),
        values=values_of(recipe.objective),
    )
    opened = _opened(rows, collate)
    _show(opened, renderer, train)
    outline = load_outline(recipe.model)
    known = _cached(recipe, rows, opened, renderer, outline.config.get_text_config().hidden_size)
    _cost(recipe, rows, opened, collate, outline, len(rows) - known)


def num_steps(rows: Sequence[PairRow], train: TrainConfig) -> int:
    """Optimizer steps of a training in which no pair is left out."""
    counts = Counter(row.stage for row in rows) if train.stages == "renew" else Counter({0: len(rows)})
    sizes = [*counts.values(), *([len(rows)] if train.sft_after_stages else [])]
    return sum(train.epochs * math.ceil(size / train.batch_size) for size in sizes)


def _opened(rows: Sequence[PairRow], collate: Collator) -> list[Opened]:
    """The first pairs of every kind, then those with the longest texts."""
    by_kind: dict[str, list[PairRow]] = {}
    for row in rows:
        by_kind.setdefault(modality(row, collate.renderer), []).append(row)
    found = []
    for kind, own in by_kind.items():
        longest = sorted(own[NUM_SHOWN:], key=lambda row: -len(row.prompt) - len(row.chosen) - len(row.rejected))
        for number, row in enumerate([*own[:NUM_SHOWN], *longest[: NUM_MEASURED - NUM_SHOWN]]):
            begin = time.perf_counter()
            shared = replace(collate, shares=True)([row])
            seconds = time.perf_counter() - begin
            found.append(Opened(row, kind, number < NUM_SHOWN, shared, collate([row]), seconds))
    return found


# Three rows ----------------------------------------------------------------------------------------------------------


def _show(opened: Sequence[Opened], renderer: Renderer, train: TrainConfig) -> None:
    """The first pairs of every kind counted, and of three pairs what the model reads."""
    for pair in (firsts := _firsts(opened)):
        tokens, most = int(pair.plain.lengths.max()), train.max_length
        fate = f", over train.max_length ({most})" if most is not None and tokens > most else ""
        media = _num_media(pair.plain.inputs["input_ids"], renderer)
        print(f"pair {pair.row.id} ({pair.kind}): {tokens} tokens, {int(media.max())} of them media{fate}")
    for pair in _of_all_kinds(firsts):
        _render(pair, renderer)
    plain, shared = mean(_num_tokens(pair.plain) for pair in firsts), mean(pair.tokens for pair in firsts)
    answers = int(opened[0].plain.mask.any(-1).sum())
    if train.shared_prefix == "off":
        print(f"shared: nothing (train.shared_prefix is off), {plain:.0f} tokens a pair")
    elif shared < plain:
        print(
            f"shared: each prompt once for its {answers} answers, where the model can (tried before the run): "
            f"{shared:.0f} tokens a pair in place of {plain:.0f}, {plain / shared:.1f} times less"
        )


def _firsts(opened: Sequence[Opened]) -> list[Opened]:
    """Pairs as they come, without those with the longest texts."""
    return [pair for pair in opened if pair.is_first]


def _of_all_kinds(opened: Sequence[Opened]) -> list[Opened]:
    """Three pairs, of different kinds as far as there are some."""
    firsts = {pair.kind: pair for pair in reversed(opened)}
    chosen = list(firsts.values())[::-1][:NUM_SHOWN]
    return (chosen + [pair for pair in opened if pair not in chosen])[:NUM_SHOWN]


def _render(pair: Opened, renderer: Renderer) -> None:
    """What the model reads of a pair: its prompts and answers with their tokens."""
    batch, before = pair.plain, ""
    ids, is_answer = batch.inputs["input_ids"], batch.completion_mask
    real = batch.inputs["attention_mask"].bool()
    places = [side for side in batch.sides for _ in range(batch.mask[batch.rows_of(side)].shape[0])]
    names = [side for side, row in zip(places, batch.mask, strict=True) if row.any()]
    print(f"{pair.row.id}:")
    for name, tokens, answer, there in zip(names, ids, is_answer, real, strict=True):
        prompt = tokens[there & ~answer & (answer.cumsum(-1) == 0)]
        text = _text(prompt, renderer)
        if text != before:
            media = int(_num_media(prompt[None], renderer))
            print(f"  prompt, {len(prompt)} tokens, {media} of them media: {text}")
            before = text
        print(f"  {name}, {int(answer.sum())} tokens: {_text(tokens[answer], renderer)}")


def _text(tokens: torch.Tensor, renderer: Renderer) -> str:
    """Tokens as the model's text on one line, each run of a medium's tokens as one; cut in the middle."""
    parts: list[str] = []
    run: list[int] = []
    count = 0
    for token in [*tokens.tolist(), None]:
        if token is not None and run and token == run[-1] and token in renderer.media_ids:
            count += 1
            continue
        if count:
            parts.append(renderer.tokenizer.decode(run, skip_special_tokens=False) + f" x {count + 1}")
            run, count = [], 0
        if token is None or token in renderer.media_ids:
            parts.append(renderer.tokenizer.decode(run, skip_special_tokens=False))
            run = []
        if token is not None:
            run.append(token)
    text = one_line("".join(parts))
    half = MAX_SHOWN // 2
    return text if len(text) <= MAX_SHOWN else f"{text[:half]} ... {text[-half:]}"


def _num_tokens(batch: PairBatch) -> int:
    """Tokens that a forward of a batch computes, without padding."""
    if batch.branches is not None:
        return int((batch.branches.owner >= 0).sum())
    return int(batch.inputs["attention_mask"].sum())


def _num_media(tokens: torch.Tensor, renderer: Renderer) -> torch.Tensor:
    """Placeholder tokens of each row."""
    return torch.isin(tokens, torch.tensor(renderer.media_ids)).sum(-1)


# What is kept --------------------------------------------------------------------------------------------------------


def _cached(recipe: Recipe, rows: Sequence[PairRow], opened: Sequence[Opened], renderer: Renderer, width: int) -> int:
    """What is computed once and kept: the reference's log-probs, and features of media, `width` numbers a token.

    Gives the number of pairs that the reference has seen.
    """
    known = 0
    train, objective = recipe.train, recipe.objective
    if reference_sides_of(objective) and train.precompute_reference:
        folder = (train.reference_cache or recipe.output / "train" / "reference").expanduser()
        known, size = _known(rows, root_of(recipe), folder), _size_of(folder.rglob("part-*.safetensors"))
        own = mean(int(pair.plain.mask.sum()) for pair in _firsts(opened))
        states = _states_size(opened, objective, width)
        held = f"{known} of {len(rows)} pairs have some in {folder} ({_bytes(size)}), used where nothing else changed"
        print(
            f"reference log-probs: once, before training, about {_bytes(len(rows) * (4 * own + states))}; "
            f"{held if known else f'none are in {folder} yet'}"
        )
    elif reference_sides_of(objective):
        print("reference log-probs: at every step, with the adapter off (train.precompute_reference is false)")
    tokens = [int(_num_media(pair.plain.inputs["input_ids"][:1], renderer)) for pair in _firsts(opened)]
    if not any(tokens):
        return known
    if train.vision_once == "off" or not train.freeze_vision:
        print("features of media: in every forward (train.vision_once is off, or the vision tower is trained)")
        return known
    total = len(rows) * mean(tokens) * width * 4
    where = f"at most {_bytes(train.feature_memory_gb * 1e9)} of them in memory"
    if train.feature_cache is not None:
        held_size = _size_of(train.feature_cache.expanduser().glob("*.safetensors"))
        where += f", all in {train.feature_cache}, which holds {_bytes(held_size)} now"
    print(f"features of media: once where the model can (tried before the run), about {_bytes(total)}; {where}")
    return known


def _states_size(opened: Sequence[Opened], objective: Objective, width: int) -> float:
    """Bytes of a pair for the hidden states that whole distributions of the reference are made of."""
    if "divergence" not in objective.needs:
        return 0.0
    return mean(int(pair.plain.counts()[0].sum()) for pair in _firsts(opened)) * width * 4


def _known(rows: Sequence[PairRow], data_root: Path, folder: Path) -> int:
    """How many rows have log-probs below `folder`, whatever weights they are of."""
    homes = [home for home in folder.glob("*") if home.is_dir()]
    if not homes:
        return 0
    keys = {row_key(row, data_root) for row in rows}
    found = [key for home in homes for key, held in Parts(home).read(keys).items() if held.logps is not None]
    return len(set(found))


def _size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


# Memory and time -----------------------------------------------------------------------------------------------------


def _cost(
    recipe: Recipe, rows: Sequence[PairRow], opened: Sequence[Opened], collate: Collator, outline: Any, missing: int
) -> None:
    """Memory at the height of a step and the time of the run, in which the reference has yet to see `missing` pairs."""
    train, device = recipe.train, device_of(recipe.model)
    size = min(train.micro_batch_size, train.batch_size)
    by_kind: dict[str, list[Opened]] = {}
    for pair in opened:
        if train.max_length is None or int(pair.plain.lengths.max()) <= train.max_length:
            by_kind.setdefault(pair.kind, []).append(pair)
    if not by_kind:
        return
    largest = max(
        (sorted(own, key=lambda pair: -pair.tokens)[:size] for own in by_kind.values()),
        key=lambda own: sum(pair.tokens for pair in own),
    )
    shares = train.shared_prefix == "auto"
    batch = replace(collate, shares=shares)([pair.row for pair in largest])
    try:
        found = forecast(outline, batch.to(device), recipe.objective, train, device)
    except Exception as error:  # a model may do anything with its numbers
        print(f"memory and time: cannot be told for this model ({type(error).__name__}: {_first_line(error)})")
        return
    print(
        f"memory: about {_bytes(found.peak)} on {device} at the height of a step of {len(largest)} pairs with "
        f"{max(pair.tokens for pair in largest)} tokens, the longest of {len(opened)} looked at: "
        f"weights {_bytes(found.weights)}, gradients {_bytes(found.gradients)}, optimizer {_bytes(found.optimizer)}, "
        f"activations {_bytes(found.activations)}; {_bytes(_free(device))} are free"
    )
    if recipe.model.quantization is not None:
        print(f"  as if weights were not quantized; with model.quantization {recipe.model.quantization} they take less")
    print(f"weights: {found.trained:,} of {found.parameters:,} are trained ({found.trained / found.parameters:.2%})")
    _time(recipe, rows, opened, largest, found, device, missing)


def _time(
    recipe: Recipe,
    rows: Sequence[PairRow],
    opened: Sequence[Opened],
    largest: Sequence[Opened],
    found: Forecast,
    device: torch.device,
    missing: int,
) -> None:
    train = recipe.train
    usual = mean(pair.tokens for pair in _firsts(opened)) / mean(pair.tokens for pair in largest)
    micro, scoring = found.micro.times(usual), found.scoring.times(usual)
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    speed = measured(device, dtype, micro.moved / max(1, micro.calls))
    parts = math.ceil(train.batch_size / len(largest))
    step = _seconds(speed, micro.times(parts) + found.step)
    steps = num_steps(rows, train)
    reads = bool(reference_sides_of(recipe.objective)) and train.precompute_reference
    opening = mean(pair.seconds for pair in opened) * len(rows)
    once = opening + (_seconds(speed, scoring) * math.ceil(missing / len(largest)) if reads else 0)
    print(
        f"time: about {_time_of(once + steps * step)}: {_time_of(once)} to open all media"
        f"{' and compute the reference' if reads else ''}, then {steps} steps of {_time_of(step)}, "
        f"{micro.flops * parts / 1e12:.3g} TFLOP each, at the {speed.flops / 1e12:.3g} TFLOP/s and "
        f"{speed.call * 1e6:.3g} us per operation that {device} did just now"
    )


def _seconds(speed: Speed, work: Work) -> float:
    return speed.seconds(work.flops, work.moved, work.calls)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _bytes(count: float) -> str:
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"


def _time_of(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
