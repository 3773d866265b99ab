"""Open media again as a pair's context recorded them: the file, then its corruptions, to the very same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmalign.corrupt.registry import apply
from mmalign.media.files import safe_path
from mmalign.media.image import PictureLimits, open_picture
from mmalign.types import MediaRef, Picture


def reopen(ref: MediaRef, root: Path, limits: PictureLimits, *, verify_sha: bool = True) -> Picture:
    """The picture a reference names, its recorded corruptions applied in order; paths are relative to `root`.

    Raises MediaError when the file cannot be used, or differs from the recorded SHA-256 while `verify_sha` is set.
    """
    picture = open_picture(safe_path(root, ref.path), replace(ref, corruptions=()), limits, verify=verify_sha)
    for corruption in ref.corruptions:
        picture = apply(picture, corruption)
    return picture
