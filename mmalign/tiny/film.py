"""Drawn clips as files and as opened media: the same pixels either way."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import av
import numpy as np

from mmalign.tiny.clips import Clip as Drawn
from mmalign.tiny.clips import draw_clip, frames
from mmalign.types import Clip, Frames, MediaRef

#: Frames per second of a drawn clip. The embedded model was taught with 1 to 24, so that no rate tells anything.
FPS: Final = 4


def opened(drawn: Drawn, num_frames: int, name: str) -> Clip:
    """The drawn clip as media, as if a file `name` had been opened."""
    times = tuple(at / FPS for at in range(num_frames))
    shown = Frames(tuple(range(num_frames)), times, FPS, num_frames)
    return Clip(tuple(draw_clip(drawn, num_frames)), times, MediaRef(name, "video", frames=shown))


def write_film(drawn: Drawn, num_frames: int, path: Path) -> None:
    """Write the drawn clip without loss (FFV1 in Matroska); equal clips give equal bytes."""
    with av.open(path, "w", format="matroska", options={"fflags": "+bitexact"}) as film:
        stream = film.add_stream("ffv1", rate=FPS, options={"flags": "+bitexact"})
        stream.width = stream.height = frames(drawn, 1)[0].shape[0]
        stream.pix_fmt = "bgr0"
        for frame in frames(drawn, num_frames):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        film.mux(stream.encode())
