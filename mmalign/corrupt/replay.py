"""Open media again as a pair's context recorded them: the file, then its corruptions, to the very same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmalign.corrupt.registry import apply
from mmalign.media.read import MediaLimits, open_ref
from mmalign.types import Media, MediaRef


def reopen(ref: MediaRef, root: Path, limits: MediaLimits, *, verify_sha: bool = True) -> Media:
    """The picture or clip a reference names, its recorded corruptions applied in order; paths are relative to `root`.

    Raises MediaError when the file cannot be used, or differs from the recorded SHA-256 while `verify_sha` is set.
    """
    media = open_ref(replace(ref, corruptions=()), root, limits, verify=verify_sha)

    def opened(other: MediaRef) -> Media:
        return reopen(other, root, limits, verify_sha=verify_sha)

    for corruption in ref.corruptions:
        media = apply(media, corruption, opened)
    return media
