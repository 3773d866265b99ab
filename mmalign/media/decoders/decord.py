"""decord: unmaintained since 2021, with hangs and crashes reported; on request only, and only where it is sure.

Left to itself it gives wrong frames after a seek where pictures lean on the group before them (open GOP, as HEVC and
MPEG-4 are mostly written), and in MPEG streams. So it seeks only in closed groups and opens only the formats below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import decord
import numpy as np
from numpy.typing import NDArray

from mmalign.media.decoders.source import CannotGiveError, Pixels, Source, fitted

#: Containers whose frames decord numbers as they are shown, by FFmpeg's names.
SURE: Final = ("mov,mp4", "matroska", "avi")

#: Frames taken in one call; the memory held does not depend on how many are asked for.
AT_ONCE: Final = 16

#: Times of decord are single floats, of which an hour takes 0.2 milliseconds.
NEAR: Final = 2e-3


def frames(source: Source, numbers: Sequence[int]) -> Iterator[Pixels]:
    """The frames, found in decord's own count by their times."""
    if not source.container.format.name.startswith(SURE):
        raise CannotGiveError(f"decord does not number the frames of {source.container.format.name} surely")
    if source.index.codec == "av1":
        raise CannotGiveError("decord knows no AV1")
    try:
        reader: Any = decord.VideoReader(str(source.path), ctx=decord.cpu(0))
        starts = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
        wanted = [_place(starts, source.index.times[number], number) for number in numbers]
        read = wanted if source.index.is_closed else range(wanted[-1] + 1)
        sought = set(wanted)
        for first in range(0, len(read), AT_ONCE):
            places = list(read[first : first + AT_ONCE])
            for place, pixels in zip(places, reader.get_batch(places).asnumpy(), strict=True):
                if place in sought:
                    yield fitted(pixels, source.size)
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        # Its messages begin with a time and the place in its own source.
        text = re.sub(r"^.*\.(cc|h):\d+: *", "", str(error).split("\n")[0])
        raise CannotGiveError(f"decord cannot decode it ({' '.join(text.split())[:120]})") from error


def _place(starts: NDArray[np.floating[Any]], time: float, number: int) -> int:
    """Which of decord's frames is shown at `time`."""
    place = int(np.abs(starts - time).argmin())
    if abs(starts[place] - time) > NEAR:
        raise CannotGiveError(f"decord knows no frame at {time:.3f} seconds (frame {number})")
    return place
