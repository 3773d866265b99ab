"""Clips that lie: sizes, times, rates and counts in a container's headers that its packets do not bear out."""

from __future__ import annotations

import random
import struct
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

from tests.fuzz.damage import Damage
from tests.fuzz.pictures import HUGE, gif_size
from tests.fuzz.seeds import exact
from tests.media.clips import Film

#: Boxes of MP4 whose fields say how large, how long and how many.
_BOXES = (b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"stss", b"avcC")
_BOXES += (b"mp4v", b"avc1", b"esds", b"hdlr", b"trak", b"moov", b"mdat")

#: Elements of Matroska: sizes, time scale, duration, default duration, track number, cluster and block starts.
_ELEMENTS = (b"\xb0\x82", b"\xba\x81", b"\x2a\xd7\xb1", b"\x44\x89", b"\x23\xe3\x83", b"\xd7\x81", b"\xe7\x81", b"\xa3")
_ELEMENTS += (b"\x1f\x43\xb6\x75", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x63\xa2")

#: Headers of AVI and Ogg.
_MARKS = (b"avih", b"strh", b"strf", b"idx1", b"movi", b"\x80theora", b"OggS", b"\x00\x00\x01\xb3", b"\x00\x00\x01\x20")


def fields(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Numbers behind the names of boxes, elements and headers."""
    found = [mark for mark in (*_BOXES, *_ELEMENTS, *_MARKS) if mark in content]
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 2, 4)) if found else 0):
        mark = rng.choice(found)
        at = content.index(mark) + len(mark) + rng.randrange(48)
        width = rng.choice((1, 2, 4))
        damaged[at : at + width] = (rng.choice(HUGE) & (256**width - 1)).to_bytes(width, "big")
    return bytes(damaged)


def box_sizes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """The length of a box of MP4, which says where the next one begins."""
    found = [mark for mark in _BOXES if mark in content]
    if not found:
        return fields(rng, content, other)
    at = content.index(rng.choice(found)) - 4
    size = rng.choice((0, 1, 7, 8, 16, 2**31, 2**32 - 1, rng.randrange(5000)))
    return content[:at] + struct.pack(">I", size) + content[at + 4 :]


@cache
def _made(kind: str) -> bytes:
    """Clips that are right in themselves, and too much."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if kind == "hours":
            return exact(Film("a.mkv", "mpeg4", num=3, times=[0, 40, 3_700_000])).write(place).read_bytes()
        if kind == "dense":
            return _written(place / "a.mkv", 400, Fraction(1, 10**9))
        if kind == "long":
            return Film("a.gif", "gif", num=700, size=(16, 16), pixels="rgb8").write(place).read_bytes()
        return Film("a.avi", "rawvideo", num=2, size=(24, 16)).write(place).read_bytes()


def _written(path: Path, num: int, step: Fraction) -> bytes:
    """Frames a billionth of a second apart, or as near to each other as the container can say."""
    with av.open(str(path), "w", options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(num):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 48), np.uint8), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = number
                packet.time_base = max(step, Fraction(1, 10**6))
                output.mux(packet)
    return path.read_bytes()


def too_much(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Hours between two frames, frames without distance, hundreds of frames, raw frames of any size."""
    kind = rng.choice(("hours", "dense", "long", "raw"))
    whole = bytearray(_made(kind))
    if kind == "raw":
        at = whole.index(b"strf") + 8
        whole[at + 4 : at + 12] = struct.pack("<II", rng.choice(HUGE), rng.choice(HUGE))
    return bytes(whole)


def rates(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Rate and scale of an AVI, and the times of an MP4: any number of frames in any time."""
    whole = bytearray(content)
    for mark, offset in ((b"strh", 24), (b"strh", 28), (b"avih", 4), (b"mdhd", 12), (b"mvhd", 12), (b"stts", 12)):
        if mark in content and rng.random() < 0.6:
            at = content.index(mark) + len(mark) + offset
            whole[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((*HUGE, 10**9)))
    return bytes(whole)


def moving(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return gif_size(rng, content, other)


LIES: tuple[Damage, ...] = (fields, fields, box_sizes, too_much, rates, moving)
