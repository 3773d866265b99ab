"""What all damages have in common that only choose which of a clip's own frames is shown when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from PIL import Image

from mmalign.corrupt.registry import Opener, Params, on_screen
from mmalign.errors import MediaError
from mmalign.types import Clip, Row

#: Random orders that are tried before the one that shows a change if any does: equal frames change places unseen.
REDRAWS = 8


class FrameMap(ABC):
    """A damage of clips that is recorded as `frames`: for every frame shown, its place in the clip before, from 0.

    As many frames as before are shown at the times of before; of fewer, each one keeps its own time.
    """

    @staticmethod
    @abstractmethod
    def maps(times: Sequence[float], params: Params) -> Iterator[Row]:
        """Parameters with their `frames` for a clip of two frames or more: the drawn ones, then stronger ones."""

    @classmethod
    def attempts(cls, clip: Clip, params: Params) -> Iterator[Row]:
        if "frames" in params:
            yield dict(params)
        elif len(clip.images) > 1:
            # Pixels are compared once here: a long clip that stands still has many orders, all of them unseen.
            looks = looks_of([image] for image in clip.images)
            for row in cls.maps(clip.times, params):
                if shown(row["frames"], clip.times, looks) != looks:
                    yield row

    @staticmethod
    def apply(clip: Clip, params: Params, opener: Opener | None) -> tuple[Sequence[Image.Image], Sequence[float]]:
        frames = params["frames"]
        if not all(0 <= place < len(clip.images) for place in frames):
            raise MediaError(
                f"{clip.ref.path}: has {len(clip.images)} frames, its recorded damage names frame {max(frames)}"
            )
        return [clip.images[place] for place in frames], times_of(frames, clip.times)


def times_of(frames: Sequence[int], times: Sequence[float]) -> Sequence[float]:
    return times if len(frames) == len(times) else [times[place] for place in frames]


def shown(frames: Sequence[int], times: Sequence[float], looks: Sequence[int]) -> list[int]:
    """What is on the screen at each of the clip's `times` when `frames` are shown, as the frames' `looks`."""
    return [looks[frames[place]] for place in on_screen(times_of(frames, times), times)]


def looks_of(parts: Iterable[Sequence[Image.Image]]) -> list[int]:
    """For every part, one frame or several of one size, the first place that has the very same pixels."""
    first: dict[bytes, int] = {}
    found = (sha256(b"".join(image.tobytes() for image in part)).digest() for part in parts)
    return [first.setdefault(digest, place) for place, digest in enumerate(found)]
