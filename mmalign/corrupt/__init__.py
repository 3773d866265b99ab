"""Corruptions: damage done to media on purpose, drawn at random once and repeatable ever after.

Rotations and mirror images are left out: a description of the source stays true of them. Corruptions of pictures are
done to clips frame by frame with the same parameters; those of videos damage the order and the course of time.
"""

from mmalign.corrupt import colour, noise, order, region, scale, staged, timing
from mmalign.corrupt.clip_swap import swap
from mmalign.corrupt.registry import apply, check_corruptions, corruption, corruption_names, draw, find_corruption
from mmalign.corrupt.replay import reopen

__all__ = [
    "apply",
    "check_corruptions",
    "colour",
    "corruption",
    "corruption_names",
    "draw",
    "find_corruption",
    "noise",
    "order",
    "region",
    "reopen",
    "scale",
    "staged",
    "swap",
    "timing",
]
