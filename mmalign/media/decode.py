"""Decode a picture: upright, 8-bit RGB, within limits that are checked before anything is decoded.

Runs in the child process that decodes (`mmalign.media.child`); libraries of many formats read what strangers wrote.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image, UnidentifiedImageError

from mmalign.errors import MediaError, RecipeError
from mmalign.media.files import is_pointer, is_text
from mmalign.media.pixels import to_rgb
from mmalign.media.quiet import quiet_pillow

#: What is tried, and nothing else: Pillow would hand EPS files to Ghostscript. JPEG stands for MPO too.
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")

#: Pillow itself refuses pictures above twice its `MAX_IMAGE_PIXELS`.
PILLOW_MAX_PIXELS: Final = 178_956_970

#: EXIF orientation (tag 0x0112) to what brings the picture upright; 1 is upright.
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_HEIC_BRANDS: Final = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """What a picture may be.

    Args:
        max_pixels: More pixels in the file's header refuse it; at most 178,956,970. One pixel takes up to 8 bytes while
            it is decoded.
        max_side: Larger pictures are scaled down to this many pixels on the longer side.
        max_bytes: Larger files are refused before they are read.
        min_side: Smaller pictures are refused: image processors take arrays a few pixels high for another layout.
        max_ratio: Longer side over shorter side; processors of the Qwen family refuse more than 200.
        decode_seconds: A decoder that takes longer for one picture is ended and the picture refused.
    """

    max_pixels: int = 100_000_000
    max_side: int = 2048
    max_bytes: int = 256 * 2**20
    min_side: int = 8
    max_ratio: float = 200.0
    decode_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_side", "max_bytes", "min_side", "max_ratio"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: got {getattr(self, name)}, must be at least 1")
        if not self.decode_seconds > 0:
            raise RecipeError(f"decode_seconds: got {self.decode_seconds}, must be more than 0")
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise RecipeError(f"max_pixels: got {self.max_pixels}, must be at most {PILLOW_MAX_PIXELS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFacts:
    """What a picture's file says: format, Pillow's colour mode, upright size in pixels, how many frames it holds."""

    format: str
    mode: str
    width: int
    height: int
    frames: int
    num_bytes: int
    sha256: str


def decode_picture(content: bytes, name: str, limits: PictureLimits) -> tuple[Image.Image, PictureFacts]:
    """Pixels and facts of a picture file's bytes; `name` stands in messages. Raises MediaError."""
    if (size := _webp_size(content)) is not None:
        _check_size(size, name, limits)  # Pillow takes memory for all pixels of a WebP when it looks at its header
    with quiet_pillow():
        try:
            image = Image.open(BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise MediaError(f"{name}: {_too_many(f'more than {PILLOW_MAX_PIXELS}', limits)}") from None
        except UnidentifiedImageError:
            raise MediaError(f"{name}: {_not_a_picture(content)}") from None
        except Exception as error:
            # Pillow's readers of formats may raise anything on a crafted or damaged header.
            raise MediaError(f"{name}: the header is damaged ({_line(error)})") from error
        with image:
            _check_size(image.size, name, limits)
            try:
                return _decoded(image, content, limits)
            except MemoryError as error:
                raise MediaError(f"{name}: takes more memory to decode than a decoder may have") from error
            except Exception as error:
                raise MediaError(f"{name}: cannot be decoded, it may be cut off or damaged ({_line(error)})") from error


def _decoded(image: Image.Image, content: bytes, limits: PictureLimits) -> tuple[Image.Image, PictureFacts]:
    kind, mode, (width, height) = image.format or "", image.mode, image.size
    scale = limits.max_side / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale))) if scale < 1 else (width, height)
    if scale < 1:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; twice the target leaves the quality to the resampling.
        image.draft(None, (2 * target[0], 2 * target[1]))
    image.load()
    # Asked after load: TIFF pictures are turned by Pillow there, size included, and then count as upright.
    orientation = _orientation(image)
    rgb = to_rgb(image)
    if rgb.size != target:
        rgb = rgb.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
    upright = rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb.copy()
    upright.info = {}
    if orientation >= 5:
        width, height = height, width
    return upright, PictureFacts(
        format=kind,
        mode=mode,
        width=width,
        height=height,
        frames=_num_frames(image),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or the block is damaged: the pixels are good all the same."""
    try:
        value = image.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _num_frames(image: Image.Image) -> int:
    """Frames, pages or pictures in the file; damage after the first one, the only one used, counts as its end."""
    try:
        return int(getattr(image, "n_frames", 1))
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return 1


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file (RFC 9649); None for other files."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind, start = content[12:16], content[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    return None


def _check_size(size: tuple[int, int], name: str, limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaError(f"{name}: {_too_many(f'{width}x{height}', limits)}")
    if min(size) < limits.min_side:
        raise MediaError(f"{name}: is {width}x{height} pixels; each side needs at least {limits.min_side}")
    if max(size) > limits.max_ratio * min(size):
        raise MediaError(
            f"{name}: is {width}x{height} pixels; the longer side may be at most {limits.max_ratio:g} times the shorter"
        )


def _too_many(size: str, limits: PictureLimits) -> str:
    return f"is {size} pixels large, over the limit of {limits.max_pixels} pixels (max_pixels)"


def _not_a_picture(content: bytes) -> str:
    """Why Pillow knows no format for these bytes, in words that say what to do where that is known."""
    start = content[:1024]
    if start[4:8] == b"ftyp":
        if start[8:12] in _HEIC_BRANDS:
            return "is a HEIC picture, which cannot be read; convert it to JPEG or PNG"
        return "is a video or an unreadable AVIF, not a picture that can be opened"
    if is_pointer(start):
        return "is a Git LFS pointer without the picture; run `git lfs pull`"
    if start.startswith(b"%PDF"):
        return "is a PDF, not a picture; convert its pages to PNG"
    if b"<svg" in start:
        return "is an SVG drawing; convert it to PNG"
    if is_text(start):
        return "holds text, not a picture"
    return "is not a picture in a known format, or its start is damaged"


def _line(error: Exception) -> str:
    """An error in one line of bounded length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
