"""Clips as strips of frames: which frames are shown, when, and what a corruption did to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from PIL import Image, ImageChops

from mmalign.corrupt.region import BoxMask
from mmalign.errors import MMAlignError
from mmalign.report.damage import all_in_words
from mmalign.report.pictures import Gallery, said_missing
from mmalign.types import Clip, MediaRef

#: Most frames of a clip on the page; of more, these are picked evenly.
MOST_FRAMES: Final = 8

#: Left, top, width and height as shares of a frame.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a strip: a frame, or a gap where frames were dropped, whose `picture` is "".

    `place` counts from 1: "3" for the third frame, "3 → 1" for the clip's third frame that a corruption put first.
    `said` is what happened to it in a word or two, `alt` says all of it in a sentence, `box` is a part painted over.
    """

    time: str
    place: str
    alt: str
    picture: str = ""
    said: str = ""
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Strip:
    """A clip on the page: some of its `total` frames, and what was done to it. Without slots, `label` says why."""

    label: str
    slots: tuple[Slot, ...] = ()
    total: int = 0
    damage: str = ""

    @property
    def num_shown(self) -> int:
        return sum(1 for slot in self.slots if slot.picture)


def strip(ref: MediaRef, gallery: Gallery) -> Strip:
    """The strip of a clip, with the corruptions of its reference done again; a line where it cannot be opened."""
    try:
        clip = gallery.open(ref)
    except MMAlignError as error:
        return Strip(said_missing("Clip", error), damage=all_in_words(ref))
    return strip_of(clip, gallery) if isinstance(clip, Clip) else Strip(f"Not a clip: {ref.path}")


def strip_of(clip: Clip, gallery: Gallery) -> Strip:
    """The strip of an opened clip; its reference says how many frames it had, when, and what was done to them."""
    before = clip.ref.frames.times if clip.ref.frames else clip.times
    origins, box = origins_of(clip, len(before)), box_of(clip)
    keys = {place: gallery.add_frame(clip.images[place], clip.ref.path) for place in picked(len(clip.images))}
    kept = [origin for origin in origins if origin is not None]
    slots = []
    # Frames that stay in order at their times leave gaps; any other change is seen by the places that they came from.
    has_gaps = len(kept) == len(origins) < len(before) and kept == sorted(set(kept))
    if has_gaps:
        slots = _with_gaps(kept, before, keys, box)
    else:
        slots = [
            _slot(place, origins[place], place > 0 and origins[place - 1] == origins[place], clip.times, key, box)
            for place, key in keys.items()
        ]
    return Strip(clip.ref.path, tuple(slots), len(clip.images), all_in_words(clip.ref))


def picked(num: int, most: int = MOST_FRAMES) -> list[int]:
    """At most `most` places among `num`, evenly spread from the first to the last."""
    if num <= most:
        return list(range(num))
    return [(2 * at * (num - 1) + most - 1) // (2 * (most - 1)) for at in range(most)]


def origins_of(clip: Clip, num: int) -> list[int | None]:
    """For every frame of a clip its place among the `num` frames before all corruptions; None for another clip's."""
    origins: list[int | None] = list(range(num))
    for corruption in clip.ref.corruptions:
        params = corruption.params
        if corruption.name == "clip_swap":
            origins[params["start"] : params["stop"]] = [None] * (params["stop"] - params["start"])
        elif "frames" in params:
            origins = [origins[place] for place in params["frames"]]
    return origins


def box_of(clip: Clip) -> Box | None:
    """Where `box_mask` painted the clip over, found by painting a blank frame over."""
    for corruption in clip.ref.corruptions:
        if corruption.name == "box_mask":
            blank = Image.new("RGB", clip.images[0].size, (255 - corruption.params["level"],) * 3)
            covered = BoxMask.apply(blank, corruption.params)
            left, top, right, bottom = ImageChops.difference(blank, covered).getbbox() or (0, 0, 0, 0)
            width, height = blank.size
            return left / width, top / height, (right - left) / width, (bottom - top) / height
    return None


def _slot(place: int, origin: int | None, is_still: bool, times: Sequence[float], key: str, box: Box | None) -> Slot:
    """The slot of the frame that is shown at `place` and was at `origin` before."""
    time, here = clock(times)[place], str(place + 1)
    covered = ", a box painted over" if box else ""
    if origin is None:
        alt = f"Frame {here} at {time}, from another clip"
        return Slot(time, here, alt + covered, key, "other clip", box)
    if origin == place and not is_still:
        return Slot(time, here, f"Frame {here} at {time}{covered}", key, "", box)
    alt = f"Place {here} at {time}: here stands frame {origin + 1} of the clip{', again' if is_still else ''}"
    return Slot(time, f"{origin + 1} → {here}", alt + covered, key, "frozen" if is_still else "moved", box)


def _with_gaps(kept: Sequence[int], before: Sequence[float], keys: dict[int, str], box: Box | None) -> list[Slot]:
    """The picked ones of the kept frames in their places, and a gap for every run of dropped ones between them."""
    times = clock(before)
    covered = ", a box painted over" if box else ""
    slots: list[Slot] = []
    dropped: list[int] = []
    shown = {kept[place]: key for place, key in keys.items()}
    is_kept = set(kept)
    for origin in range(len(before)):
        if origin in shown:
            slots += _gap(dropped, times)
            dropped = []
            here = str(origin + 1)
            slots.append(Slot(times[origin], here, f"Frame {here} at {times[origin]}{covered}", shown[origin], "", box))
        elif origin not in is_kept:
            dropped.append(origin)
    return slots + _gap(dropped, times)


def _gap(dropped: Sequence[int], times: Sequence[str]) -> list[Slot]:
    if not dropped:
        return []
    first, last = dropped[0], dropped[-1]
    if first == last:
        return [Slot(times[first], str(first + 1), f"Frame {first + 1} at {times[first]} is dropped", said="dropped")]
    if last - first + 1 == len(dropped):
        place, said = f"{first + 1} to {last + 1}", "dropped"
    else:
        place, said = f"between {first + 1} and {last + 1}", f"{len(dropped)} dropped"
    alt = f"{len(dropped)} frames, {place}, from {times[first]} to {times[last]}, are dropped"
    return [Slot(f"{times[first]} to {times[last]}", place, alt, said=said)]


def clock(times: Sequence[float]) -> list[str]:
    """Seconds as they stand under frames: "0.4 s", with two decimals where frames follow within less than half a second
    and one decimal would make uneven steps of even ones.
    """
    is_fine = any(abs(time - round(time, 1)) > 1e-6 for time in times)
    is_close = any(after - before < 0.5 for before, after in pairwise(times))
    return [f"{time:.{2 if is_fine and is_close else 1}f}\u00a0s" for time in times]
