"""A sample's references become opened media."""

from __future__ import annotations

from pathlib import Path

from mmalign.media.files import safe_path
from mmalign.media.image import PictureLimits, open_picture
from mmalign.types import Sample, SampleRow


def open_media(row: SampleRow, root: Path, limits: PictureLimits) -> Sample:
    """Open all media of a row; paths are relative to the data folder `root`. Raises MediaError."""
    return row.opened([open_picture(safe_path(root, ref.path), ref, limits) for ref in row.media])
