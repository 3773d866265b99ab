"""What frames a video file holds and when they are shown, from its packets alone: nothing is decoded.

Runs in the child process that decodes (`mmalign.media.child`); only there PyAV is imported.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import av
from av.stream import Discard, Disposition

from mmalign.errors import MediaError

#: Container formats that are opened, and nothing else: a playlist could name other files and addresses.
FORMATS: Final = (
    "3g2,3gp,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,webm,wtv"
)


@dataclass(frozen=True, slots=True)
class Index:
    """The packets of a video stream in the file's order, and its frames in the order they are shown.

    `pts` and `dts` are per packet in units of `time_base` seconds, `keys` marks packets at which decoding may begin,
    `shown` holds the positions of the packets whose frames are shown. `times` are the frames' seconds, the first at 0,
    strictly ascending. Takes about 40 bytes a frame.
    """

    codec: str
    width: int
    height: int
    rate: float
    pts: array[int]
    dts: array[int]
    keys: bytearray
    shown: array[int]
    times: array[float]

    @property
    def total(self) -> int:
        return len(self.times)

    @property
    def fps(self) -> float:
        """Mean frames per second; for a single frame what the file says, 1 where it does not."""
        return (self.total - 1) / self.times[-1] if self.total > 1 else self.rate or 1.0

    @property
    def is_closed(self) -> bool:
        """Whether decoding may begin at every key frame: none of the frames behind it in the file is shown before."""
        key = self.pts[0]
        for place, moment in enumerate(self.pts):
            key = moment if self.keys[place] else key
            if moment < key:
                return False
        return True

    @property
    def duration(self) -> float:
        """Seconds until the last frame is no longer shown, which is taken to stay as long as the mean frame."""
        return self.times[-1] + 1 / self.fps


class UnsureIndexError(Exception):
    """The packets do not tell the frames (no times, or one time twice): the frames must be counted by decoding."""


@contextmanager
def opened(path: Path, name: str, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. Raises MediaError when there is none that can be decoded."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(max_pixels)}
    try:
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{name}: cannot be opened as a video ({line(error)})") from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{name}: holds no video stream")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise MediaError(f"{name}: is in a codec that cannot be decoded here")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        stream.thread_type = "AUTO"
        yield container, stream


def scan(container: Any, stream: Any, name: str, max_frames: int, max_seconds: float) -> Index:
    """The index of the stream, read from the container's present place, its start.

    What cannot be read behind a cut-off place is not part of it. Raises MediaError when nothing can be read or a limit
    is passed, and UnsureIndexError.
    """
    pts, dts, keys, hidden = array("q"), array("q"), bytearray(), bytearray()
    unsure = is_cut = False
    for packet in packets(container, stream):
        if len(pts) == max_frames:
            raise MediaError(f"{name}: has more than {max_frames} frames, the limit (max_frames)")
        unsure |= packet.pts is None
        pts.append(packet.pts or 0)
        dts.append(packet.pts or 0 if packet.dts is None else packet.dts)
        keys.append(packet.is_keyframe)
        hidden.append(packet.is_discard)
        is_cut = packet.is_corrupt
    if is_cut:
        hidden[-1] = True  # only of the last packet this says that a piece is missing
    shown = sorted((place for place in range(len(pts)) if not hidden[place]), key=pts.__getitem__)
    if not shown:
        raise MediaError(f"{name}: holds no frame that can be read; it is empty or cut off")
    if unsure or any(pts[one] == pts[two] for one, two in pairwise(shown)):
        raise UnsureIndexError
    found = _index(stream, pts, dts, keys, array("q", shown), [pts[place] for place in shown])
    check_duration(found, name, max_seconds)
    return found


def counted(container: Any, stream: Any, name: str, max_frames: int, max_seconds: float) -> Index:
    """The index of the frames that really decode, found by decoding all of them; slow, for files that need it.

    Frames without a time follow each other at the stream's rate. Raises MediaError.
    """
    seen = array("q")
    step = 1 / (float(stream.time_base) * float(stream.average_rate or stream.guessed_rate or 25))
    for frame in every_frame(container, stream):
        if len(seen) == max_frames:
            raise MediaError(f"{name}: has more than {max_frames} frames, the limit (max_frames)")
        least = seen[-1] + 1 if seen else None
        time = frame.pts if frame.pts is not None else round((seen[-1] + step) if seen else 0)
        seen.append(time if least is None else max(least, time))
    if not seen:
        raise MediaError(f"{name}: none of its frames can be decoded; it is damaged or cut off")
    found = _index(stream, seen, seen, bytearray(len(seen)), array("q", range(len(seen))), list(seen))
    check_duration(found, name, max_seconds)
    return found


def _index(
    stream: Any, pts: array[int], dts: array[int], keys: bytearray, shown: array[int], moments: list[int]
) -> Index:
    base = float(stream.time_base)
    context = stream.codec_context
    return Index(
        codec=context.codec.canonical_name,
        width=context.width,
        height=context.height,
        rate=float(stream.average_rate or stream.guessed_rate or 0),
        pts=pts,
        dts=dts,
        keys=keys,
        shown=shown,
        times=array("d", ((moment - moments[0]) * base for moment in moments)),
    )


def check_duration(index: Index, name: str, max_seconds: float) -> None:
    """Raise MediaError for a video that is too long."""
    if index.duration > max_seconds:
        raise MediaError(
            f"{name}: lasts {index.duration:.1f} seconds, over the limit of {max_seconds:g} seconds (max_seconds)"
        )


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets up to the place where the file cannot be read on."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


def every_frame(container: Any, stream: Any) -> Iterator[Any]:
    """All frames that decode, in the order they are shown; packets that do not are passed over."""
    for packet in packets(container, stream):
        yield from decoded(stream, packet)
    yield from decoded(stream, None)


def decoded(stream: Any, packet: Any) -> list[Any]:
    """What the decoder gives out after this packet; None lets it give out all that it holds back."""
    try:
        return list(stream.codec_context.decode(packet))
    except (av.FFmpegError, EOFError, OSError):
        return []


def line(error: BaseException) -> str:
    """An error in one line of bounded length, without the path that PyAV repeats in it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
