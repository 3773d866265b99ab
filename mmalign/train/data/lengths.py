"""Which pairs are short enough to train on. Nothing is ever cut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmalign.errors import TrainError
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig


def short_enough(rows: Sequence[PairRow], lengths: Tensor, config: TrainConfig) -> list[int]:
    """Indices of the rows whose `lengths` (R, S), in tokens, are all within `config.max_length`.

    Raises TrainError, naming the longest, when there is none, or when `config.overlong` says so and there are others.
    """
    longest: list[int] = lengths.amax(1).tolist()
    kept = [index for index, length in enumerate(longest) if config.max_length is None or length <= config.max_length]
    if len(kept) < len(rows) and (config.overlong == "error" or not kept):
        worst = max(range(len(longest)), key=longest.__getitem__)
        hint = ", or set train.overlong to drop" if kept else ""
        raise TrainError(
            f"{len(rows) - len(kept)} of {len(rows)} pairs are longer than train.max_length {config.max_length}, "
            f"pair {rows[worst].id} has {longest[worst]} tokens; raise train.max_length{hint}"
        )
    return kept
