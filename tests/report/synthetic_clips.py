"""Makes a run about clips, with one pair for every kind of damage, and a few about pictures and texts alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmalign.corrupt import apply, draw, reopen, swap
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow, write_pairs
from mmalign.tiny.clips import clip, draw_clip
from mmalign.tiny.film import write_film
from mmalign.types import Clip, MediaRef, Row
from tests.report.synthetic_run import make_pairs, make_run

#: Every corruption of clips, and one of pictures, which is done to each frame.
DAMAGES: Final = (
    "box_mask",
    "local_shuffle",
    "global_shuffle",
    "reverse",
    "drop_frames",
    "freeze",
    "speed",
    "segment_shuffle",
    "block_drop",
    "block_reverse",
    "block_shuffle",
    "clip_swap",
    "gaussian_noise",
)
NUM_FRAMES: Final = 8
EVENTS: Final = ("the fish moves up", "the boat vanishes")


def opened(root: Path, index: int = 0, num_frames: int = NUM_FRAMES) -> Clip:
    """A drawn clip that was written below `root` and opened again."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"clip-{index}-{num_frames}.mkv"
    if not path.exists():
        write_film(clip(0, "pairs", index), num_frames, path)
    found = reopen(MediaRef(path.name, "video"), root, MediaLimits())
    assert isinstance(found, Clip)
    return found


def damaged(clean: Clip, name: str, other: Clip, seed: int = 0) -> Clip:
    """The clip damaged by a corruption with parameters drawn from a seed."""
    rng = random.Random(seed)
    return swap(clean, other, rng) if name == "clip_swap" else apply(clean, draw(name, rng))


def pair(ref: MediaRef, source: str, damage: MediaRef | None, index: int, **changed: Any) -> PairRow:
    """A pair about one clip; the rejected side is about the damaged one, where there is one."""
    row = PairRow(
        id=f"{ref.path}#0.{index}",
        sample_id=f"{ref.path}-{index:03d}",
        method="rrpo",
        source=source,
        context=asked(ref),
        rejected_context=asked(damage) if damage else None,
        chosen="A red fish moves up. Then the boat vanishes.",
        rejected="The boat vanishes. Then a red fish moves down.",
        gap=float(index),
    )
    return PairRow(**{name: getattr(row, name) for name in row.__slots__} | changed)


def asked(ref: MediaRef) -> list[Row]:
    return [{"role": "user", "content": [ref.to_row(), {"type": "text", "text": "What happens in the video?"}]}]


def clip_pairs(root: Path) -> Iterator[PairRow]:
    """Pairs about clips: one per kind of damage, one with two of them, one of many frames, two bad files."""
    clean, other = opened(root, 0), opened(root, 1)
    for index, name in enumerate(DAMAGES):
        yield pair(clean.ref, name, damaged(clean, name, other, index).ref, index)
    both = damaged(damaged(clean, "box_mask", other), "local_shuffle", other)
    row = [corruption.to_row() for corruption in both.ref.corruptions]
    yield pair(clean.ref, "mask_and_shuffle", None, 20, provenance={"corruptions": row})
    long = opened(root, 2, 16)
    yield pair(long.ref, "long", damaged(long, "drop_frames", other).ref, 21)
    (root / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8)
    yield pair(MediaRef("broken.mp4", "video"), "broken", None, 22)
    yield pair(MediaRef("gone.mp4", "video"), "gone", None, 23)


def make_clip_run(run: Path, *, more: int = 3) -> Path:
    """A finished run about clips, and about `more` pictures and one text; returns the folder of its media."""
    data = make_run(run, pairs=0, quarantined=0)
    text = [{"role": "user", "content": [{"type": "text", "text": "Tell me about fish."}]}]
    rows = [
        *clip_pairs(data),
        *make_pairs(data, more),
        pair(MediaRef("none", "video"), "text", None, 30, context=text, id="text"),
    ]
    write_pairs(run / "round-0" / "pairs.parquet", rows)
    (run / "evaluation.json").write_text(json.dumps(event_evaluation(run)), encoding="utf-8")
    return data


def event_evaluation(run: Path) -> dict[str, Any]:
    """Content of evaluation.json for clips, the frames of its examples written into the run."""
    columns = {"event_chair_i": (0.2, 0.05), "event_chair_s": (0.4, 0.1), "event_recall": (0.8, 0.79)}
    columns |= {"order": (0.9, 0.89), "events": (2.5, 2.4), "words": (20.0, 19.0)}
    rows = [
        {"name": kind, "kind": kind, "seed": 0, "values": {name: both[at] for name, both in columns.items()}}
        for at, kind in enumerate(("before", "after"))
    ]
    examples = []
    for index in range(2):
        frames = [f"examples/clip-{index}-{number}.png" for number in range(NUM_FRAMES)]
        for path, image in zip(frames, draw_clip(clip(0, "test", index), NUM_FRAMES), strict=True):
            image.save(run / path)
        examples.append(
            {
                "frames": frames,
                "times": [number / 4 for number in range(NUM_FRAMES)],
                "prompt": "What happens in the video?",
                "before": "The fish moves up. Then the cat appears.",
                "after": "The fish moves up. Then the boat vanishes.",
                "truth": list(EVENTS),
                "wrong_before": [[19, 39]],
                "wrong_after": [],
            }
        )
    return {
        "task": "What happens in the video?",
        "what": "drawn clips",
        "num_scenes": 200,
        "columns": list(columns),
        "rows": rows,
        "examples": examples,
    }
