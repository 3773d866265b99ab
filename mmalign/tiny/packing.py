"""Packs many questions about one picture into one sequence: the picture is seen once, each question on its own branch.

A row is a prefix (picture or clip or text) followed by branches. A token attends to the prefix and to its own branch;
every branch's positions go on where the prefix ends. Token ids, pixels and positions equal those of the processor and
the stock model for each question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from mmalign.tiny.draw import SIDE, Pixels, coverage
from mmalign.tiny.questions import Turn
from mmalign.tiny.vocabulary import END, IMAGE_PAD, ROLES, VIDEO_PAD, VISION_END, VISION_START, build_tokenizer
from mmalign.tiny.world import COLOURS, KINDS, SIZES, Scene

Ints = npt.NDArray[np.int64]

PATCH: Final = 8
MERGE: Final = 2
GRID: Final = SIDE // PATCH // MERGE  # tokens per side of a picture
IGNORE: Final = -100


@lru_cache(maxsize=1)
def _tokenizer() -> object:
    return build_tokenizer()


@lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text in which special tokens may stand."""
    return tuple(_tokenizer().encode(text).ids)  # type: ignore[attr-defined]


def patchify(frames: Sequence[Pixels]) -> Pixels:
    """Pairs of frames as patches, (pairs, 64, 384) of bytes in the processor's order; a lone picture pairs itself."""
    if len(frames) % 2:
        frames = [*frames, frames[-1]]
    stack = np.stack(frames).reshape(-1, 2, GRID, MERGE, PATCH, GRID, MERGE, PATCH, 3)
    return np.ascontiguousarray(stack.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(-1, (SIDE // PATCH) ** 2, 384)


def picture_prefix(system: str = "") -> str:
    """The text before a question about one picture, with its image tokens."""
    return _system(system) + ROLES["user"] + VISION_START + IMAGE_PAD * GRID**2 + VISION_END


def clip_prefix(num: int, fps: float, system: str = "") -> str:
    """The text before a question about a clip of `num` frames, with timestamps and video tokens."""
    slot = VISION_START + VIDEO_PAD * GRID**2 + VISION_END
    times = [(at + min(at + 1, num - 1)) / fps / 2 for at in range(0, num, 2)]
    return _system(system) + ROLES["user"] + "".join(f"<{time:.1f} seconds>{slot}" for time in times)


def text_prefix(text: str) -> str:
    """The text before a question about a text."""
    return f"{ROLES['user']}Text: {text}"


def _system(text: str) -> str:
    return f"{ROLES['system']}{text}{END}" if text else ""


def positions(ids: Sequence[int], begin: int = 0) -> tuple[Ints, int]:
    """Time, height and width positions (3, len) of a token sequence, and the position that follows it."""
    visual = {encode(IMAGE_PAD)[0], encode(VIDEO_PAD)[0]}
    table = np.empty((3, len(ids)), dtype=np.int64)
    at, now = 0, begin
    while at < len(ids):
        if ids[at] in visual:
            rows, columns = np.divmod(np.arange(GRID**2), GRID)
            table[:, at : at + GRID**2] = now + np.stack([np.zeros_like(rows), rows, columns])
            at, now = at + GRID**2, now + GRID
        else:
            table[:, at] = now
            at, now = at + 1, now + 1
    return table, now


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. All are (B, L) but `places` (3, B, L) and `patches` (pairs, 64, 384).

    `segment` is 0 in the prefix, 1.. in branches, -1 in padding; `labels` hold the next token or -100; `weights` and
    `tags` (which lesson) belong to the labels.
    """

    ids: Ints
    places: Ints
    segment: Ints
    labels: Ints
    weights: npt.NDArray[np.float32]
    tags: Ints
    patches: Pixels


def pack(
    rows: Sequence[tuple[str, Sequence[tuple[int, Sequence[Turn]]], Pixels | None]], length: int, pad: int = 0
) -> Batch:
    """Pack rows of (prefix, tagged groups of turns, patches) into `length` tokens each.

    Groups are taken in order; one that no longer fits is left out whole, so pairs stay pairs.
    """
    shape = (len(rows), length)
    ids, segment = np.full(shape, pad, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    labels, tags = np.full(shape, IGNORE, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    weights, places = np.zeros(shape, dtype=np.float32), np.zeros((3, *shape), dtype=np.int64)
    patches = []
    for row, (prefix, groups, media) in enumerate(rows):
        head = encode(prefix)
        end = len(head)
        ids[row, :end], segment[row, :end] = head, 0
        places[:, row, :end], follow = positions(head)
        branch = 0
        for tag, turns in groups:
            coded = [(encode(turn.ask + END + ROLES["assistant"]), encode(turn.answer + END)) for turn in turns]
            if end + sum(len(ask) + len(answer) for ask, answer in coded) > length:
                continue
            for (ask, answer), turn in zip(coded, turns, strict=True):
                branch += 1
                span = slice(end, end + len(ask + answer))
                said = slice(end + len(ask) - 1, span.stop - 1)
                ids[row, span], segment[row, span] = ask + answer, branch
                labels[row, said], weights[row, said], tags[row, said] = answer, turn.weight, tag
                places[:, row, span] = follow + np.arange(len(ask + answer))
                end = span.stop
        if media is not None:
            patches.append(media)
    empty = np.zeros((0, (SIDE // PATCH) ** 2, 384), dtype=np.uint8)
    return Batch(ids, places, segment, labels, weights, tags, np.concatenate(patches) if patches else empty)


def dense_labels(scene: Scene) -> Ints:
    """What each of the 16 image tokens mostly shows: (3, 16) of kind, colour, size; 0 nothing, -100 unclear."""
    areas = np.zeros((len(scene.objects) + 1, GRID**2), dtype=np.float32)
    for at, thing in enumerate(scene.objects, 1):
        areas[at] = coverage(thing).reshape(GRID, 16, GRID, 16).sum((1, 3)).reshape(-1)
    best = areas.argmax(0)
    names = np.zeros((3, len(areas)), dtype=np.int64)
    for at, thing in enumerate(scene.objects, 1):
        names[:, at] = (
            1 + KINDS.index(thing.kind),
            1 + list(COLOURS).index(thing.colour),
            1 + SIZES.index(thing.size),
        )
    labels = names[:, best]
    amount = areas.max(0)
    labels[:, (amount >= 6) & (amount < 24)] = IGNORE
    labels[:, amount < 6] = 0
    return labels
