"""Whether memory ran out: torch, its libraries and Python say so in several ways."""

from __future__ import annotations

import torch

#: What torch says, in any case of letters, where it raises no error of its own kind.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)
