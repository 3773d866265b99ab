"""A folder as users have them: good pictures of every kind among files that cannot be used.

`write_hostile_folder` is the one list of cases; the tests of media, of prepare and of the whole loop go over it.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

#: Upright size of the drawn pictures, and the colours of their four quarters, clockwise from the upper left.
SIZE = (96, 64)
QUARTERS = ((220, 40, 40), (40, 200, 60), (50, 60, 210), (230, 220, 60))


def quarters(size: tuple[int, int] = SIZE, shade: int = 0) -> Image.Image:
    """Four flat quarters; no rotation or mirror image of it is the same picture. `shade` makes another picture."""
    image = Image.new("RGB", size)
    width, height = size
    pen = ImageDraw.Draw(image)
    half_x, half_y = width // 2, height // 2
    boxes = ((0, 0), (half_x, 0), (half_x, half_y), (0, half_y))
    for (left, top), (red, green, blue) in zip(boxes, QUARTERS, strict=True):
        pen.rectangle((left, top, left + half_x, top + half_y), fill=(red, green, (blue + shade) % 256))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a file holding `image`."""
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file, with its length and check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Signature and header of a PNG file of any size, without its pixels."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def deep_png() -> bytes:
    """`quarters` as PNG of 16 bits a channel, which Pillow reads but cannot write."""
    levels = np.asarray(quarters()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    return png_header(*SIZE, depth=16) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def grey_ramp() -> Image.Image:
    """A 16-bit grey picture whose columns go evenly from 0 to 65535."""
    width, height = SIZE
    ramp = np.round(np.linspace(0, 65535, width)).astype(np.uint16)
    return Image.fromarray(np.tile(ramp, (height, 1)))


def rotated_by_exif(orientation: int) -> bytes:
    """A JPEG whose pixels lie as a camera held that way stores them; upright it is `quarters`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters() if orientation == 1 else quarters().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "JPEG", quality=95, exif=exif)


def _palette_with_hole() -> bytes:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


def _half_clear(mode: str) -> Image.Image:
    image = quarters().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def good_files() -> dict[str, bytes]:
    """Pictures that open, of every format and colour mode, by name."""
    frames = [quarters(shade=shade) for shade in (0, 60, 120)]
    moving = {"save_all": True, "append_images": frames[1:], "duration": 100}
    shades = iter(range(3, 200, 7))

    def fresh() -> Image.Image:
        return quarters(shade=next(shades))

    files = {
        "plain.jpg": encoded(fresh(), "JPEG"),
        "nested/deep/plain.png": encoded(fresh(), "PNG"),
        "album.jpg/inside.png": encoded(fresh(), "PNG"),
        "with space and 'quote'.jpeg": encoded(fresh(), "JPEG"),
        "Ünïcödé 写真 📷.png": encoded(fresh(), "PNG"),
        "SHOUT.JPG": encoded(fresh(), "JPEG"),
        "really a png.jpg": encoded(fresh(), "PNG"),
        "progressive.jpg": encoded(fresh(), "JPEG", progressive=True),
        "grey.jpg": encoded(fresh().convert("L"), "JPEG"),
        "cmyk.jpg": encoded(quarters().convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encoded(quarters().convert("CMYK"), "TIFF"),
        "grey16.png": encoded(grey_ramp(), "PNG"),
        "grey16.tif": encoded(grey_ramp(), "TIFF"),
        "deep.png": deep_png(),
        "float.tif": encoded(Image.fromarray(np.asarray(grey_ramp()).astype(np.float32) / 65535), "TIFF"),
        "onebit.png": encoded(quarters().convert("1"), "PNG"),
        "palette.png": encoded(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "palette hole.png": _palette_with_hole(),
        "rgba.png": encoded(_half_clear("RGB"), "PNG"),
        "la.png": encoded(_half_clear("L"), "PNG"),
        "moving.gif": encoded(frames[0], "GIF", **moving),
        "moving.webp": encoded(frames[0], "WEBP", **moving, lossless=True),
        "moving.png": encoded(frames[0], "PNG", **moving),
        "still.webp": encoded(fresh(), "WEBP"),
        "still.avif": encoded(fresh(), "AVIF"),
        "still.bmp": encoded(fresh(), "BMP"),
        "still.ppm": encoded(fresh(), "PPM"),
        "wide.png": encoded(quarters((1600, 10)), "PNG"),
        "large.jpg": encoded(quarters((3000, 2000)), "JPEG"),
        "bad exif.jpg": encoded(fresh(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\x01\x02"),
    }
    files.update({f"exif/{orientation}.jpg": rotated_by_exif(orientation) for orientation in range(1, 9)})
    return files


def _bad() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(quarters((400, 300)), "JPEG"), encoded(_half_clear("RGB").resize((300, 200)), "PNG")
    wrong_sum = bytearray(png)
    wrong_sum[png.index(b"IDAT") + 20] ^= 0xFF
    rng = np.random.RandomState(0)
    return {
        "zero.jpg": (b"", "is empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cut off or damaged"),
        "cut.png": (png[: len(png) // 2], "cut off or damaged"),
        "only the start.jpg": (jpeg[:2], "not a picture"),
        "wrong sum.png": (bytes(wrong_sum), "cut off or damaged"),
        "cut.webp": (encoded(quarters((400, 300)), "WEBP")[:300], "damaged"),
        "cut.tif": (encoded(quarters((400, 300)), "TIFF")[:5000], "damaged"),
        "cut packed.tif": (_cut_packed_tiff(), "damaged"),
        "text.jpg": (b"no picture here\n" * 40, "holds text"),
        "error page.png": ("<!doctype html><p>Seite nicht gefunden — 404".encode(), "holds text"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        "film.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100), "is a video"),
        "random.png": (rng.bytes(3000), "not a picture"),
        "huge header.png": (png_header(60_000, 60_000) + png_chunk(b"IDAT", b"\0" * 99), "over the limit"),
        "large header.png": (png_header(12_000, 12_000) + png_chunk(b"IDAT", b"\0" * 99), "12000x12000"),
        "bomb.png": (_bomb(), "over the limit"),
        "dot.png": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), "at least 8"),
        "ribbon.png": (encoded(quarters((4000, 10)), "PNG"), "times the shorter"),
        "not finite.tif": (encoded(Image.fromarray(np.full((64, 96), np.nan, np.float32)), "TIFF"), "not finite"),
    }


def _cut_packed_tiff() -> bytes:
    """A packed TIFF whose directory is whole (it comes first) while the pixels behind it end early."""
    content = bytearray(encoded(quarters((400, 300)), "TIFF", compression="tiff_lzw"))
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    return bytes(content)


def _bomb() -> bytes:
    """A complete PNG of 16384x16384 pixels in a few kilobytes."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + 2048)) for _ in range(16384)) + rows.flush()
    return png_header(16384, 16384, depth=1, colour=0) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def write_hostile_folder(root: Path) -> dict[str, str | None]:
    """Write the folder; returns each picture's relative path with None if it is good, else a part of the reason.

    Beside the pictures lie other and hidden files, which belong to nobody and are not returned.
    """
    outside = root.parent / f"{root.name} outside"
    outside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(encoded(quarters(), "PNG"))
    expected: dict[str, str | None] = {}
    for name, content in good_files().items():
        expected[name] = None
        _write(root / name, content)
    for name, (content, reason) in _bad().items():
        expected[name] = reason
        _write(root / name, content)
    for name, target, why in (
        ("link out.png", outside / "secret.png", "outside of the data folder"),
        ("link to nothing.png", Path("nowhere.png"), "no such file"),
        ("link inside.jpg", Path("plain.jpg"), None),
    ):
        (root / name).symlink_to(target)
        expected[name] = why
    for name in ("notes.txt", "labels.json", ".hidden.png", ".cache/thumb.png", "no suffix"):
        _write(root / name, encoded(quarters(), "PNG"))
    return expected


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
