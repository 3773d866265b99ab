"""Videos whose frames carry their own number as a bar code, in every codec and shape that can be written here.

`Film` says what to write; `coded` draws a frame and `number_of` reads it back. `FILMS` is the one list of good videos
that the tests of decoding and of prepare go over; `write_broken` makes those that cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

#: Bits of a frame's number, behind a white and before a black bar that show which side is left.
BITS = 10
MILLISECOND = Fraction(1, 1000)


def coded(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame (height, width, 3): bars on the upper half, grey below."""
    width, height = size
    bars = [1, *((number >> bit) & 1 for bit in range(BITS)), 0]
    row = np.array([255 * bars[column * len(bars) // width] for column in range(width)], np.uint8)
    frame = np.full((height, width, 3), 128, np.uint8)
    frame[: height // 2] = row[None, :, None]
    return frame


def number_of(image: Image.Image) -> int:
    """The number that an upright frame carries; raises AssertionError for one that is turned or unreadable."""
    levels = np.asarray(image.convert("L")).astype(int)
    height, width = levels.shape
    below = levels[3 * height // 4 :]
    assert abs(int(np.median(below)) - 128) < 24, "the lower half is not grey"
    count = BITS + 2
    middles = [(2 * bar + 1) * width // (2 * count) for bar in range(count)]
    values = levels[height // 8 : 3 * height // 8, middles].mean(axis=0)
    assert all(value < 64 or value > 192 for value in values), values
    bars = [int(value > 128) for value in values]
    assert (bars[0], bars[-1]) == (1, 0), bars
    return sum(bit << place for place, bit in enumerate(bars[1:-1]))


@dataclass(frozen=True)
class Film:
    """A video to write. `times` are milliseconds of the frames; without, `rate` frames per second."""

    name: str
    codec: str
    num: int = 48
    size: tuple[int, int] = (192, 96)
    rate: int = 25
    times: Sequence[int] | None = None
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    pixels: str = "yuv420p"
    sound: bool = False

    def seconds(self) -> list[float]:
        """When the frames are shown, the first at 0."""
        if self.times is not None:
            return [(time - self.times[0]) / 1000 for time in self.times]
        return [number / self.rate for number in range(self.num)]

    def write(self, folder: Path) -> Path:
        """Write the video into `folder`."""
        path = folder / self.name
        with av.open(str(path), "w", options=self.container) as output:
            stream = output.add_stream(self.codec, rate=self.rate, options={"threads": "1", **self.options})
            turned = self.rotation % 180 != 0
            stream.width, stream.height = self.size[::-1] if turned else self.size
            stream.pix_fmt = self.pixels
            if self.times is not None:
                stream.codec_context.time_base = MILLISECOND
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            voice = output.add_stream("aac", rate=8000, layout="mono") if self.sound else None
            for number in range(self.num):
                # A player turns the stored picture counter-clockwise by `rotation`, so it is stored turned back.
                stored = np.ascontiguousarray(np.rot90(coded(number, self.size), -self.rotation // 90))
                frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=self.pixels)
                frame.pts = number if self.times is None else self.times[number]
                frame.time_base = Fraction(1, self.rate) if self.times is None else MILLISECOND
                output.mux(stream.encode(frame))
                if voice is not None:
                    _speak(output, voice, number, 8000 // self.rate)
            output.mux(stream.encode(None))
            if voice is not None:
                output.mux(voice.encode(None))
        return path


def _speak(output: av.container.OutputContainer, voice: av.AudioStream, number: int, samples: int) -> None:
    wave = np.zeros((1, samples), np.float32)
    sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    sound.sample_rate, sound.pts, sound.time_base = 8000, number * samples, Fraction(1, 8000)
    output.mux(voice.encode(sound))


def uneven(num: int) -> list[int]:
    """Times in milliseconds with steps from 20 to 190, from a fixed sequence."""
    steps = (40, 20, 130, 30, 60, 190, 50)
    times = [0]
    for number in range(num - 1):
        times.append(times[-1] + steps[number % len(steps)])
    return times


_B = {"bf": "3", "g": "24", "x264-params": "b-pyramid=normal:scenecut=0"}
_X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:keyint=24"}

FILMS = (
    Film("constant.mp4", "libx264", options={"bf": "0", "g": "24"}),
    Film("b frames.mp4", "libx264", options=_B, sound=True),
    Film("open gop.mkv", "libx264", options={**_B, "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}),
    Film("variable.mkv", "libx264", times=uneven(48), options=_B),
    Film("variable.mp4", "libx264", times=uneven(48), options=_B),
    Film("long.mp4", "libx264", num=700, options={"bf": "2", "g": "50"}),
    Film("long.mkv", "libx264", num=700, options={"bf": "2", "g": "50"}, sound=True),
    Film("stream.ts", "libx264", options=_B, sound=True),
    Film("hevc.mp4", "libx265", options=_X265),
    Film("hevc open gop.mkv", "libx265", options={"x265-params": _X265["x265-params"] + ":open-gop=1:bframes=4"}),
    Film("vp9.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "24"}),
    Film("vp9 hidden.webm", "libvpx-vp9", options={"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "5"}),
    Film("vp8.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "5"}),
    Film("av1.mp4", "libsvtav1", options={"preset": "12", "svtav1-params": "lp=1", "g": "24"}),
    Film("av1.mkv", "libsvtav1", options={"preset": "12", "svtav1-params": "lp=1", "g": "24"}),
    Film("mpeg4.mp4", "mpeg4", options={"bf": "2", "g": "12", "qscale": "3"}),
    Film("mpeg4.avi", "mpeg4", options={"g": "12"}),
    Film("mpeg4 b frames.avi", "mpeg4", options={"bf": "2", "g": "12"}),
    Film("old.mpg", "mpeg2video", options={"bf": "2", "g": "12"}),
    Film("bare.h264", "libx264", options=_B),
    Film("moving.gif", "gif", times=[10 * t for t in uneven(24)], num=24, pixels="rgb8"),
    Film("rotated 90.mp4", "libx264", rotation=90),
    Film("rotated 180.mp4", "libx264", rotation=180),
    Film("rotated 270.mov", "libx264", rotation=-90),
    Film("odd.webm", "libvpx-vp9", size=(191, 97), options={"deadline": "realtime", "cpu-used": "8"}),
    Film("odd.mp4", "libx264", size=(191, 97), pixels="yuv444p"),
    Film("one frame.mp4", "libx264", num=1),
    Film("one frame.gif", "gif", num=1, pixels="rgb8"),
    Film("two frames.webm", "libvpx-vp9", num=2),
    Film("starts late.mkv", "libx264", times=[5000 + 40 * n for n in range(48)], options=_B),
)

#: Written to be cut off at nine tenths: their index stands in front, or there is none, so what comes before is good.
CUT = (
    Film("cut.mkv", "libx264", options=_B),
    Film("cut.mp4", "libx264", options=_B, container={"movflags": "faststart"}),
    Film("cut.ts", "libx264", options=_B),
    Film("cut.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    Film("cut.avi", "mpeg4", options={"g": "12"}),
    Film("cut.gif", "gif", num=24, pixels="rgb8"),
    Film("cut.mpg", "mpeg2video", options={"bf": "2", "g": "12"}),
    Film("cut hevc.mkv", "libx265", options=_X265),
)


def write_broken(folder: Path) -> dict[str, str]:
    """Write files that are no usable videos; returns each one's name with a part of the reason."""
    good = Film("good.mp4", "libx264").write(folder)
    content = good.read_bytes()
    good.unlink()
    gif = Film("good.gif", "gif", num=3, pixels="rgb8").write(folder)
    animation = bytearray(gif.read_bytes())
    gif.unlink()
    animation[6:10] = b"\xff\xff\xff\xff"
    rng = np.random.RandomState(0)
    files = {
        "cut index.mp4": (content[: len(content) // 2], "cannot be opened as a video"),
        "empty.mp4": (b"", "is empty"),
        "text.mp4": (b"no video here\n" * 40, "holds text"),
        "playlist.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "holds text"),
        "playlist in disguise.mp4": (b"#EXTM3U\n#EXTINF:9,\n/etc/\xff\xfe\n#EXT-X-ENDLIST\n", "cannot be opened"),
        "pointer.mp4": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        "random.mp4": (rng.bytes(30_000), "cannot be opened as a video"),
        "picture.mp4": (_png(), "cannot be opened as a video"),
        "huge.gif": (bytes(animation), "over the limit of"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.mp4").mkdir()
    with av.open(str(folder / "sound.mp4"), "w") as output:
        voice = output.add_stream("aac", rate=8000, layout="mono")
        for number in range(20):
            _speak(output, voice, number, 320)
        output.mux(voice.encode(None))
    Film("tiny.gif", "gif", num=2, size=(4, 4), pixels="rgb8").write(folder)
    Film("ribbon.mkv", "mpeg4", num=2, size=(3200, 8)).write(folder)
    reasons = {
        "folder.mp4": "is a folder",
        "sound.mp4": "holds no video stream",
        "tiny.gif": "at least 8",
        "ribbon.mkv": "times the shorter",
    }
    return {name: reason for name, (_, reason) in files.items()} | reasons


def _png() -> bytes:
    stream = BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    return stream.getvalue()
