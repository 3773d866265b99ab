"""References become opened media: pictures and clips, under one set of limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.media.files import safe_path
from mmalign.media.frames import FrameChoice
from mmalign.media.image import PictureLimits, open_picture
from mmalign.media.video import ClipLimits, open_clip
from mmalign.types import Media, MediaRef, Sample, SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """What media may be, and which frames of a video are taken."""

    picture: PictureLimits = field(default_factory=PictureLimits)
    clip: ClipLimits = field(default_factory=ClipLimits)
    frames: FrameChoice = field(default_factory=FrameChoice)


def open_media(row: SampleRow, root: Path, limits: MediaLimits) -> Sample:
    """Open all media of a row; paths are relative to the data folder `root`. Raises MediaError."""
    return row.opened([open_ref(ref, root, limits) for ref in row.media])


def open_ref(ref: MediaRef, root: Path, limits: MediaLimits, *, verify: bool = True) -> Media:
    """The picture or clip that a reference without corruptions names, below `root`.

    Raises MediaError when it cannot be used, or differs from the recorded SHA-256 while `verify` is set.
    """
    path = safe_path(root, ref.path)
    if ref.kind == "video":
        return open_clip(path, ref, limits.clip, limits.frames, verify=verify)
    return open_picture(path, ref, limits.picture, verify=verify)
