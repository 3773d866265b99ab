"""mmalign: image, video and text language models that align themselves.

The names below load what they need when they are first used; importing the package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmalign.errors import MediaError, MMAlignError, NoPair, SampleError
    from mmalign.library import Pairs, align, compare, load, make_pairs, served
    from mmalign.methods import method
    from mmalign.pairs import PairRow, read_pairs, write_pairs
    from mmalign.types import Answer, Chat, Completion, Judgement, Pair, Picture, Sample, Sampling

_HOME = {
    "errors": ("MMAlignError", "MediaError", "NoPair", "SampleError"),
    "library": ("Pairs", "align", "compare", "load", "make_pairs", "served"),
    "methods": ("method",),
    "pairs": ("PairRow", "read_pairs", "write_pairs"),
    "types": ("Answer", "Chat", "Completion", "Judgement", "Pair", "Picture", "Sample", "Sampling"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Answer",
    "Chat",
    "Completion",
    "Judgement",
    "MMAlignError",
    "MediaError",
    "NoPair",
    "Pair",
    "PairRow",
    "Pairs",
    "Picture",
    "Sample",
    "SampleError",
    "Sampling",
    "align",
    "compare",
    "load",
    "make_pairs",
    "method",
    "read_pairs",
    "served",
    "write_pairs",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mmalign' has no attribute {name!r}")
    return getattr(import_module(f"mmalign.{_MODULE_OF[name]}"), name)
