"""What can go wrong in a step, told in one line: memory that runs out, a loss or a gradient that is no number."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from mmalign.errors import MMAlignError, TrainError
from mmalign.lm.memory import is_out_of_memory
from mmalign.lm.render import Renderer
from mmalign.objectives import Objective
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig

if TYPE_CHECKING:
    from mmalign.train.data.collate import PairBatch

_ASKED = re.compile(r"tried to allocate ([\d.,]+ \w+)", re.IGNORECASE)


@contextmanager
def memory_named(
    doing: str,
    rows: Sequence[PairRow],
    config: TrainConfig,
    renderer: Renderer,
    batch: PairBatch | None,
    *,
    is_whole_step: bool = False,
) -> Iterator[None]:
    """Within the block memory that runs out becomes a TrainError: the pairs, their size in tokens, the keys to change.

    `doing` says at what, such as "the forward"; `batch` is that of `rows` on the CPU, None for the optimizer's step,
    whose memory does not depend on them. `is_whole_step`: the objective compares all of them with each other.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(str(error))
        more = f" ({asked[1]} more were asked for)" if asked else ""
        where = f"memory ran out{more} in {doing} of pair"
        if batch is None:
            named, remedy = ", ".join(row.id for row in rows), _fewer_weights(config)
        else:
            named, remedy = _sizes(batch, renderer), _smaller(rows, config, is_whole_step=is_whole_step)
        raise TrainError(f"{where} {named}; {remedy}") from None


def _sizes(batch: PairBatch, renderer: Renderer) -> str:
    """The pairs with the tokens of the longest of their answers, and what the model is given."""
    tokens = batch.lengths.amax(0).tolist()
    pairs = ", ".join(f"{pair} ({count:,} tokens)" for pair, count in zip(batch.ids, tokens, strict=True))
    ids = batch.inputs["input_ids"]
    media = int(torch.isin(ids, torch.tensor(renderer.media_ids, dtype=ids.dtype)).sum())
    return f"{pairs}: {len(ids):,} x {ids.shape[1]:,} tokens at once, {media:,} of them media"


def _smaller(rows: Sequence[PairRow], config: TrainConfig, *, is_whole_step: bool) -> str:
    """What to change: first what leaves the result as it is, so that the run goes on, then the rest."""
    free = []
    if len(rows) > 1 and not is_whole_step:
        free.append(f"lower train.micro_batch_size ({config.micro_batch_size})")
    if not config.gradient_checkpointing:
        free.append("set train.gradient_checkpointing: true")
    kinds = {part["type"] for row in rows for turns in row.contexts for turn in turns for part in turn["content"]}
    lower = [f"train.batch_size ({config.batch_size})"] * (len(rows) > 1 and is_whole_step)
    lower += [f"train.max_length ({'none' if config.max_length is None else config.max_length})"]
    lower += ["data.max_side"] * ("image" in kinds) + ["data.num_frames", "data.max_frame_side"] * ("video" in kinds)
    other = f"lower {' or '.join(lower)}" + (", or set train.precision: bf16" if config.precision == "fp32" else "")
    first = f"{' or '.join(free)}, and the same run goes on; or, " if free else ""
    return f"{first}in a new run, {other}"


def _fewer_weights(config: TrainConfig) -> str:
    fewer = "set train.lora" if config.lora is None else f"lower train.lora.rank ({config.lora.rank})"
    return f"train fewer weights ({fewer}), or spread them over accelerators (recipes/accelerate/fsdp2.yaml)"


@contextmanager
def own_code_named(objective: Objective) -> Iterator[None]:
    """Within the block an error in an objective of the user's own becomes a TrainError with its file and line.

    One in the package's own objectives, or about memory, is left as it is.
    """
    try:
        yield
    except MMAlignError:
        raise
    except Exception as error:  # a user's code may fail in any way
        steps = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__", "").partition(".")[0] not in ("mmalign", "torch")
        ]
        if not steps or is_out_of_memory(error):
            raise
        path, line = steps[-1]
        told = str(error).partition("\n")[0]
        raise TrainError(
            f"objective {objective.name}: {type(error).__name__}: {told} ({Path(path).name}:{line})"
        ) from error


def refuse_shape(objective: Objective, loss: Tensor, num_pairs: int) -> None:
    """Raise TrainError for a loss that is not one number per pair: an average would be spread over the pairs anew."""
    if loss.shape != (num_pairs,):
        raise TrainError(
            f"objective {objective.name} gave a loss of shape {tuple(loss.shape)} for {num_pairs} pairs; it must give "
            "one loss per pair, never a mean over them"
        )


def refuse_loss(pairs: Sequence[str], is_bad: Sequence[float]) -> NoReturn:
    """Raise TrainError that names those of a step's pairs whose loss is no number."""
    named = ", ".join(pair for pair, bad in zip(pairs, is_bad, strict=True) if bad)
    raise TrainError(
        f"the loss is not finite at pair {named or ', '.join(pairs)}; lower train.learning_rate, try train.precision "
        "fp32, or take the pair out"
    )


def refuse_gradient(pairs: Sequence[str], is_finite: Callable[[int], bool]) -> NoReturn:
    """Raise TrainError that names those of a step's pairs whose gradient is no number.

    `is_finite` computes the gradient of the pair at a place in the step, on its own.
    """
    bad = [pair for place, pair in enumerate(pairs) if not is_finite(place)]
    which = f"of pair {', '.join(bad)}" if bad else f"of the pairs {', '.join(pairs)} together, though of none alone,"
    raise TrainError(
        f"the gradient {which} is not finite, though the loss is; lower train.learning_rate, try train.precision fp32, "
        "or take the pair out"
    )
