"""What a request to a model must look like. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.errors import SampleError
from mmalign.lm.protocol import Option
from mmalign.types import Sampling


def check_sampling(sampling: Sampling, seed: int) -> None:
    """Raises SampleError for settings that mean nothing."""
    for name, is_good, remedy in (
        ("temperature", sampling.temperature >= 0, "0 (greedy) or more"),
        ("top_p", 0 < sampling.top_p <= 1, "more than 0, at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (off) or more"),
        ("repetition_penalty", sampling.repetition_penalty > 0, "more than 0; 1 is off"),
        ("max_new_tokens", sampling.max_new_tokens > 0, "at least 1"),
        ("stop", all(sampling.stop), "strings that are not empty"),
    ):
        if not is_good:
            raise SampleError(f"sampling.{name} is {getattr(sampling, name)!r}: give {remedy}")
    if not 0 <= seed < 1 << 63:
        raise SampleError(f"seed {seed} is not a 63-bit number: give 0 to 2**63 - 1")


def check_options(options: Sequence[Option]) -> None:
    """Raises SampleError unless there are two options or more, each with forms that are not empty."""
    if len(options) < 2:
        raise SampleError(f"a choice needs two options or more, {len(options)} given")
    for number, option in enumerate(options, 1):
        if isinstance(option, str):
            raise SampleError(f"option {number} is the string {option!r}: give a sequence of surface forms")
        if not option or not all(option):
            raise SampleError(f"option {number} of the choice is empty: give each option a surface form")
