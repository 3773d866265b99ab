"""What a request to a model must look like. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.errors import SampleError
from mmalign.lm.protocol import Option


def check_seed(seed: int) -> None:
    """Raises SampleError for a seed that no generator takes."""
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
