"""Open a picture: upright, 8-bit RGB, within limits, decoded in a guarded process."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from mmalign.errors import MediaError
from mmalign.media.decode import PictureFacts, PictureLimits, decode_picture
from mmalign.media.files import check_file, file_sha256, safe_path
from mmalign.media.guard import GUARD, Decoded
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
    decoded = _decoded(path, ref.path, limits, sha256=ref.sha256 if verify else "", pixels=True)
    # A copy gives the shared memory back at once; samples in flight may be many.
    return Picture(decoded.frames[0].copy(), replace(ref, sha256=decoded.head["sha256"]))


def inspect_picture(path: Path, name: str, limits: PictureLimits) -> PictureFacts:
    """Open a picture as `open_picture` does, pixels included, and keep only the facts. Raises MediaError."""
    return PictureFacts(**_decoded(path, name, limits, sha256="", pixels=False).head)


def _decoded(path: Path, name: str, limits: PictureLimits, *, sha256: str, pixels: bool) -> Decoded:
    """What `mmalign.media.child` answers. Raises MediaError, also when the file has another SHA-256 than one given."""
    check_file(path, name, limits.max_bytes)
    request = {"path": str(path), "name": name, "sha256": sha256, "pixels": pixels, "picture": asdict(limits)}
    return GUARD.decode({**request, "seconds": limits.decode_seconds})
