"""Corruptions: damage done to media on purpose, drawn at random once and repeatable ever after.

Rotations and mirror images are left out: a description of the source stays true of them.
"""

from mmalign.corrupt import colour, noise, region, scale
from mmalign.corrupt.registry import apply, corruption, corruption_names, draw, find_corruption
from mmalign.corrupt.replay import reopen

__all__ = [
    "apply",
    "colour",
    "corruption",
    "corruption_names",
    "draw",
    "find_corruption",
    "noise",
    "region",
    "reopen",
    "scale",
]
