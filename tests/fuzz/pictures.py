"""Pictures that lie about themselves: sizes, counts and texts in a header that nothing behind it bears out."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from tests.fuzz.damage import Damage
from tests.media.hostile import encoded, png_chunk, png_header, quarters

HUGE = (0, 1, 7, 8, 255, 10_001, 16_383, 20_000, 65_535, 100_000, 2**24 - 1, 2**31 - 1, 2**32 - 1)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def png_chunks(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Chunks of a PNG in another order, twice, or gone; their sums are right."""
    chunks = _chunks(encoded(quarters(), "PNG") if content[:4] != b"\x89PNG" else content)
    for _ in range(rng.choice((1, 2, 5))):
        act, place = rng.randrange(3), rng.randrange(len(chunks))
        if act == 0:
            chunks[place], chunks[-1] = chunks[-1], chunks[place]
        elif act == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[place])
        elif len(chunks) > 1:
            del chunks[place]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_size(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Any size before the pixels of a small picture."""
    width, height = rng.choice(HUGE), rng.choice(HUGE)
    header = png_header(width, height, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6)))
    return header + png_chunk(b"IDAT", zlib.compress(bytes(3000))) + png_chunk(b"IEND", b"")


@cache
def whole_png(side: int, depth: int, colour: int) -> bytes:
    """A square picture of one colour: millions of pixels in a few kilobytes."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    packed = zlib.compressobj(9)
    row = bytes(1 + side * depth * channels // 8)
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return png_header(side, side, depth, colour) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_bomb(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Pixels by the million: within the limits or over them."""
    return whole_png(*rng.choice(((2500, 8, 2), (4000, 16, 0), (12_000, 1, 0))))


@cache
def _zeros(megabytes: int) -> bytes:
    packed = zlib.compressobj(9)
    return b"".join(packed.compress(bytes(2**20)) for _ in range(megabytes)) + packed.flush()


def text_bomb(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Compressed texts and profiles of many megabytes beside the pixels."""
    packed = _zeros(rng.choice((1, 40, 150)))
    chunk = rng.choice(
        (
            png_chunk(b"zTXt", b"Comment\0\0" + packed),
            png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed),
            png_chunk(b"iCCP", b"profile\0\0" + packed),
        )
    )
    whole = encoded(quarters(), "PNG")
    return whole[:33] + chunk * rng.choice((1, 70)) + whole[33:]


def moving_png(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """An animation that says it has any number of frames, of any size, anywhere."""
    number = rng.choice(HUGE)
    whole = encoded(quarters(), "PNG", save_all=True, append_images=[quarters(shade=9)])
    chunks = _chunks(whole)
    for place, (kind, data) in enumerate(chunks):
        if kind == b"acTL":
            chunks[place] = (kind, struct.pack(">II", number, rng.choice(HUGE)))
        elif kind == b"fcTL" and rng.random() < 0.5:
            chunks[place] = (kind, data[:4] + struct.pack(">IIII", *(rng.choice(HUGE) for _ in range(4))) + data[20:])
    return whole[:8] + b"".join(png_chunk(kind, data) for kind, data in chunks)


def gif_size(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A screen and frames of any size; sometimes tens of thousands of frames."""
    whole = bytearray(encoded(quarters(), "GIF", save_all=True, append_images=[quarters(shade=9)]))
    if rng.random() < 0.6:
        whole[6:10] = struct.pack("<HH", rng.choice(HUGE) & 0xFFFF, rng.choice(HUGE) & 0xFFFF)
    place = whole.find(b"\x2c")
    if rng.random() < 0.6:
        whole[place + 1 : place + 9] = struct.pack("<HHHH", *(rng.choice(HUGE) & 0xFFFF for _ in range(4)))
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return bytes(whole[:-1]) + frame * rng.choice((0, 20, 20_000)) + b";"


def webp_size(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A canvas of any size around small frames."""
    moving = {"save_all": True, "append_images": [quarters(shade=50)]}
    whole = bytearray(encoded(quarters(), "WEBP", **rng.choice(({}, moving)), lossless=rng.random() < 0.5))
    width, height = (rng.choice((*HUGE, 16_383)) & 0xFFFFFF for _ in range(2))
    if whole[12:16] == b"VP8X":
        whole[24:30] = width.to_bytes(3, "little") + height.to_bytes(3, "little")
    elif whole[12:16] == b"VP8L":
        whole[21:25] = (int.from_bytes(whole[21:25], "little") | rng.getrandbits(28)).to_bytes(4, "little")
    else:
        whole[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    return bytes(whole)


def tiff_fields(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One or two fields of a TIFF directory with any value, any type and any count."""
    modes: tuple[Callable[[], Image.Image], ...] = (
        quarters,
        lambda: quarters().convert("CMYK"),
        lambda: Image.fromarray(np.linspace(0, 1, 6000, dtype=np.float32).reshape(60, 100)),
    )
    packing = rng.choice((None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"))
    picture = rng.choice(modes)()
    whole = bytearray(encoded(picture, "TIFF", compression=packing if picture.mode != "F" else None))
    start = int.from_bytes(whole[4:8], "little")
    num = int.from_bytes(whole[start : start + 2], "little")
    for _ in range(rng.choice((1, 2))):
        at = start + 2 + 12 * rng.randrange(max(1, num))
        part = rng.randrange(3)
        if part == 0:
            whole[at + 2 : at + 4] = struct.pack("<H", rng.choice((1, 3, 4, 5, 12, 99)))
        elif part == 1:
            whole[at + 4 : at + 8] = struct.pack("<I", rng.choice(HUGE))
        else:
            whole[at + 8 : at + 12] = struct.pack("<I", rng.choice(HUGE))
    return bytes(whole)


def jpeg_size(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A frame header of any size; sometimes with thousands of scans, each a pass over all pixels."""
    whole = bytearray(encoded(quarters((640, 480)), "JPEG", progressive=rng.random() < 0.5))
    frame = max(whole.find(b"\xff\xc0"), whole.find(b"\xff\xc2"))
    if rng.random() < 0.5:
        whole[frame + 5 : frame + 9] = struct.pack(">HH", *(rng.choice(HUGE) & 0xFFFF for _ in range(2)))
        return bytes(whole)
    scan = whole.rfind(b"\xff\xda")
    return bytes(whole[:-2]) + bytes(whole[scan:-2]) * rng.choice((1, 50, 2000)) + b"\xff\xd9"


def rows_size(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Formats whose header is a few numbers: BMP and PPM."""
    if rng.random() < 0.5:
        whole = bytearray(encoded(quarters(), "BMP"))
        at = rng.choice((10, 14, 18, 22, 28, 30, 34, 46))
        whole[at : at + 4] = struct.pack("<I", rng.choice(HUGE))
        return bytes(whole)
    kind = rng.choice(("P1", "P2", "P3", "P4", "P5", "P6", "Pf"))
    return f"{kind} {rng.choice(HUGE)} {rng.choice(HUGE)} {rng.choice((1, 255, 65_535, 2**40))}\n".encode() + content


LIES: tuple[Damage, ...] = (
    *(png_chunks, png_size, png_bomb, text_bomb, moving_png, gif_size, webp_size, tiff_fields, tiff_fields),
    *(jpeg_size, rows_size),
)
