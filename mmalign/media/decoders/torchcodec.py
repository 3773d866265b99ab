"""torchcodec: PyTorch's decoder; needs FFmpeg's libraries on the system and a build that fits torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from torchcodec.decoders import VideoDecoder

from mmalign.media.decoders.source import CannotGiveError, Pixels, Source, fitted

#: Frames taken in one call; the memory held does not depend on how many are asked for.
AT_ONCE: Final = 16
NEAR: Final = 1e-3


def frames(source: Source, numbers: Sequence[int]) -> Iterator[Pixels]:
    """The frames, by torchcodec's own exact count, which must show them at the same times."""
    try:
        reader: Any = VideoDecoder(str(source.path), dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=0)
        start = float(reader.metadata.begin_stream_seconds)
        for first in range(0, len(numbers), AT_ONCE):
            asked = list(numbers[first : first + AT_ONCE])
            batch = reader.get_frames_at(asked)
            for number, seconds, pixels in zip(asked, batch.pts_seconds, batch.data, strict=True):
                if abs(float(seconds) - start - source.index.times[number]) > NEAR:
                    raise CannotGiveError(f"torchcodec shows frame {number} at {float(seconds) - start:.3f} seconds")
                yield fitted(pixels.numpy(), source.size)
    except (RuntimeError, IndexError, ValueError) as error:
        text = " ".join(str(error).split("\n")[0].split())
        raise CannotGiveError(f"torchcodec cannot decode it ({text[:120]})") from error
