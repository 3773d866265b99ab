"""A clip as a list of shorter clips, each shown by a few of its frames."""

from __future__ import annotations

from dataclasses import replace

from mmalign.types import Clip


def parts(clip: Clip, num: int, num_frames: int) -> list[Clip]:
    """`num` consecutive parts of equal length (by one frame), or as many as there are frames.

    Each has `num_frames` frames, if it has so many, evenly inside it: two are those at 1/3 and 2/3 (TEMPLE, arXiv
    2503.16929). Its reference names the file's frames that are left.
    """
    total = len(clip.images)
    num = min(num, total)
    found = []
    for number in range(num):
        start, stop = number * total // num, (number + 1) * total // num
        shown = min(num_frames, stop - start)
        # Frame i covers [i, i + 1), so the last of few frames may end where the part does.
        places = [start + (at + 1) * (stop - start) // (shown + 1) for at in range(shown)]
        found.append(part(clip, places if shown < stop - start else list(range(start, stop))))
    return found


def part(clip: Clip, places: list[int]) -> Clip:
    """The frames at these places of a clip, with their own times."""
    frames = clip.ref.frames
    if frames is not None and len(frames.numbers) == len(clip.images):
        kept = [(frames.numbers[at], frames.times[at]) for at in places]
        numbers, times = zip(*kept, strict=True)
        frames = replace(frames, numbers=numbers, times=times)
    shown = tuple(clip.images[at] for at in places)
    return Clip(shown, tuple(clip.times[at] for at in places), replace(clip.ref, frames=frames))
