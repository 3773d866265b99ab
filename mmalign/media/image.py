"""Open a picture: upright, 8-bit RGB, within limits that are checked before anything is decoded."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from mmalign.errors import MediaError, RecipeError
from mmalign.media.files import file_sha256, is_pointer, is_text, read_file, safe_path
from mmalign.media.pixels import to_rgb
from mmalign.media.quiet import quiet_pillow
from mmalign.types import MediaRef, Picture

__all__ = [
    "PictureFacts",
    "PictureLimits",
    "decode_picture",
    "file_sha256",
    "inspect_picture",
    "open_picture",
    "safe_path",
]

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
    """

    max_pixels: int = 100_000_000
    max_side: int = 2048
    max_bytes: int = 256 * 2**20
    min_side: int = 8
    max_ratio: float = 200.0

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_side", "max_bytes", "min_side", "max_ratio"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: got {getattr(self, name)}, must be at least 1")
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


def open_picture(path: Path, ref: MediaRef, limits: PictureLimits, *, verify: bool = True) -> Picture:
    """The picture in a file, upright, RGB, at most `limits.max_side` long; of an animation the first frame.

    The returned reference holds the SHA-256 of the bytes that were decoded. Raises MediaError with the path as written
    in `ref` and the reason; also when `ref` knows another SHA-256 and `verify` is set, and for references with
    corruptions, which `mmalign.corrupt.reopen` opens.
    """
    if ref.corruptions:
        raise MediaError(f"{ref.path}: names a damaged picture where an undamaged one belongs")
    if ref.kind != "image":
        raise MediaError(f"{ref.path}: is a {ref.kind}, not a picture")
    content = read_file(path, ref.path, limits.max_bytes)
    sha256 = hashlib.sha256(content).hexdigest()
    if verify and ref.sha256 and ref.sha256 != sha256:
        raise MediaError(f"{ref.path}: has changed since its SHA-256 was recorded; prepare the samples again")
    return Picture(decode_picture(content, ref.path, limits)[0], replace(ref, sha256=sha256))


def inspect_picture(path: Path, name: str, limits: PictureLimits) -> PictureFacts:
    """Open a picture as `open_picture` does, pixels included, and keep only the facts. Raises MediaError."""
    return decode_picture(read_file(path, name, limits.max_bytes), name, limits)[1]


def decode_picture(content: bytes, name: str, limits: PictureLimits) -> tuple[Image.Image, PictureFacts]:
    """Pixels and facts of a picture file's bytes; `name` stands in messages. Raises MediaError."""
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
