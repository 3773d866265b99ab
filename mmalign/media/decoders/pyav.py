"""PyAV, the backend that is always there: only the packets that the wanted frames need are decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mmalign.media.decoders.source import CannotGiveError, Pixels, Source, turned
from mmalign.media.index import Index, decoded, every_frame, packets

#: Packets that are read over rather than sought past: reading one costs microseconds, a seek may land too early.
FAR: Final = 200


def frames(source: Source, numbers: Sequence[int]) -> Iterator[Pixels]:
    """The frames, from as few decoded packets as the file's key frames allow.

    A frame whose packet does not decode ends in CannotGiveError; in a counted source all frames did decode.
    """
    painter = _Painter(source.size)
    found = _counted(source, numbers) if source.is_counted else _sought(source, numbers)
    left = list(reversed(numbers))
    for number, frame in found:
        if number != left[-1]:
            raise CannotGiveError(f"frame {left[-1]} does not decode")
        left.pop()
        yield painter.paint(frame)
        if not left:
            return
    raise CannotGiveError(f"frame {left[-1]} does not decode")


def _counted(source: Source, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    wanted = set(numbers)
    for number, frame in enumerate(every_frame(source.container, source.stream)):
        if number in wanted:
            yield number, frame


def needed(index: Index, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of packets, from a key frame to the last packet wanted after it, that decode to these frames.

    Both ends are positions in the file's order, both included. A frame that stands behind a key frame in the file but
    is shown before it (open GOP) may lean on the key frame before.
    """
    keys = [place for place, is_key in enumerate(index.keys) if is_key]
    ranges: list[tuple[int, int]] = []
    for place in sorted(index.shown[number] for number in numbers):
        key = bisect_right(keys, place) - 1
        while key > 0 and index.pts[keys[key]] > index.pts[place]:
            key -= 1
        start = keys[key] if key >= 0 else 0
        if ranges and start <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], place))
        else:
            ranges.append((start, place))
    return ranges


def _sought(source: Source, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    index, stream = source.index, source.stream
    context = stream.codec_context
    wanted = {index.pts[index.shown[number]]: number for number in numbers}
    reader = _Reader(source)
    for start, end in needed(index, numbers):
        reader.go_to(start)
        first = index.pts[start]
        for place in range(start, end + 1):
            packet = reader.next()
            # Frames between are not given out, and those that no other frame leans on are not even decoded.
            context.skip_frame = "DEFAULT" if index.pts[place] in wanted else "NONREF"
            if place > start and index.pts[place] < first and index.pts[place] not in wanted:
                continue  # shown before the key frame: leans on what is not decoded
            for frame in decoded(stream, packet):
                if frame.pts in wanted:
                    yield wanted[frame.pts], frame
        for frame in decoded(stream, None):
            if frame.pts in wanted:
                yield wanted[frame.pts], frame
        context.flush_buffers()


class _Reader:
    """Packets of a stream by their position; goes forward only."""

    def __init__(self, source: Source) -> None:
        self._index, self._container, self._stream = source.index, source.container, source.stream
        self._packets: Iterator[Any] = iter(())
        self._place = len(self._index.pts)
        self.go_to(0)

    def next(self) -> Any:
        """The packet at the present position. Raises CannotGiveError when it is another one than at the first time."""
        packet = next(self._packets, None)
        if packet is None or self._name(packet) != (self._index.pts[self._place], self._index.dts[self._place]):
            raise CannotGiveError("its packets cannot be found again by their times")
        self._place += 1
        return packet

    def go_to(self, place: int) -> None:
        """Make `place` the position of the next packet."""
        if not 0 <= place - self._place <= FAR and not self._seek(place):
            self._seek(0)
        while self._place < place:
            self.next()

    def _seek(self, place: int) -> bool:
        """Whether the packet at `place` comes up soon after the decoder's container was asked for its time."""
        name = (self._index.pts[place], self._index.dts[place])
        try:
            self._container.seek(min(name), stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            return False
        following = packets(self._container, self._stream)
        for packet in islice(following, FAR):
            if self._name(packet) == name:
                self._packets, self._place = chain([packet], following), place
                return True
        return False

    @staticmethod
    def _name(packet: Any) -> tuple[int, int]:
        return packet.pts, packet.pts if packet.dts is None else packet.dts


class _Painter:
    """Frames to upright arrays of one size, RGB and a fourth byte that says nothing."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._scaler, self._widener = VideoReformatter(), VideoReformatter()

    def paint(self, frame: Any) -> Pixels:
        (width, height), degrees = self._size, frame.rotation
        if (frame.width, frame.height) == self._size:
            how = Interpolation.BILINEAR
        else:
            # Scaled straight to four bytes, colours come out otherwise than in three.
            how = Interpolation.BICUBIC
            frame = self._scaler.reformat(frame, width, height, "rgb24", interpolation=how, threads=1)
        # The decoder's threads leave none to help, and waiting for help takes longer than the work.
        wide = self._widener.reformat(frame, width, height, "rgb0", interpolation=how, threads=1).planes[0]
        rows = np.frombuffer(memoryview(wide), np.uint8).reshape(height, wide.line_size)
        return turned(rows[:, : 4 * width].reshape(height, width, 4), degrees)
