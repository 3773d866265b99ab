"""A clip in the form that the video processors of transformers take: an array of frames and what its times are.

Processors know times only as frame numbers over a rate; the metadata made here say the clip's own `times` in these
terms, whatever frames of whatever file they belong to.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mmalign.types import Clip, Row

#: Ticks per second of the clock that numbers frames which lie on no constant rate.
CLOCK = 1_000_000
#: How far, in seconds, a time may lie beside a constant rate: containers round times to milliseconds.
_TOLERANCE = 1e-3
#: Largest denominator of a frame rate (NTSC: 30000/1001).
_DENOMINATOR = 1001


def at_least(clip: Clip, frames: int) -> Clip:
    """The clip with its last frame shown again, at the same time, until there are `frames`."""
    missing = max(0, frames - len(clip.images))
    return Clip(clip.images + clip.images[-1:] * missing, clip.times + clip.times[-1:] * missing, clip.ref)


def pixels(clip: Clip) -> np.ndarray:
    """The frames as uint8 (frames, height, width, 3)."""
    return np.stack([np.asarray(image) for image in clip.images])


def metadata(clip: Clip) -> Row:
    """`video_metadata` of a clip: `frames_indices` over `fps` are its times, in seconds.

    Times on a constant rate are numbered at that rate, others in microseconds. `total_num_frames` is such that the
    rate of the shown frames, which Qwen2.5-VL spaces positions by, is that of `times`; `duration` is the file's.
    """
    times, frames = clip.times, clip.ref.frames
    rate = _rate(times, frames.fps if frames is not None else 0.0)
    spacing = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    length = frames.total / frames.fps if frames is not None and frames.fps > 0 else 0.0
    width, height = clip.images[0].size
    return {
        "total_num_frames": max(1, round(len(times) * spacing * rate)),
        "fps": rate,
        "frames_indices": [round(time * rate) for time in times],
        "duration": max(length, times[-1]),
        "width": width,
        "height": height,
    }


def _rate(times: tuple[float, ...], fps: float) -> float:
    """A rate, in frames per second, on whose grid all times lie: the file's, else one frame per step, else `CLOCK`."""
    span = times[-1] - times[0]
    for wanted in (fps, (len(times) - 1) / span if span > 0 else 0.0):
        rate = float(Fraction(wanted).limit_denominator(_DENOMINATOR))
        if rate > 0 and all(abs(round(time * rate) / rate - time) <= _TOLERANCE for time in times):
            return rate
    return float(CLOCK)
