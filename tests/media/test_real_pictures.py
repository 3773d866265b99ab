"""Photographs and drawings of several makers: all open, and as Pillow shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmalign.media.image import PictureLimits, open_picture, safe_path
from mmalign.samples import list_pictures
from mmalign.types import MediaRef

HERE = Path(__file__).resolve().parents[2]
LIMITS = PictureLimits()


def compare(folder: Path) -> int:
    """Compare every picture below a folder with Pillow's own reading; returns how many there were."""
    names = list_pictures(folder).files
    for name in names:
        ours = open_picture(safe_path(folder, name), MediaRef(name), LIMITS).image
        with Image.open(folder / name) as raw:
            theirs = ImageOps.exif_transpose(raw)
            if max(theirs.size) > LIMITS.max_side:
                assert max(ours.size) == LIMITS.max_side
                assert ours.size[0] / ours.size[1] == pytest.approx(theirs.size[0] / theirs.size[1], rel=2e-3)
                small = theirs.convert("RGB").resize(ours.size, Image.Resampling.BICUBIC)
                assert np.abs(np.asarray(ours).astype(int) - np.asarray(small)).mean() < 2
            else:
                assert ours.size == theirs.size
                if not theirs.has_transparency_data:
                    assert ours.tobytes() == theirs.convert("RGB").tobytes(), name
    return len(names)


def test_own_photographs() -> None:
    assert compare(HERE / "data" / "images") == 6


def test_shared_pictures() -> None:
    folder = HERE.parent / "shared" / "media" / "images"
    if not folder.is_dir():
        pytest.skip("the shared pictures are not here")
    assert compare(folder) > 400


def test_licences_are_listed() -> None:
    folder = HERE / "data" / "images"
    text = (folder / "LICENSES.md").read_text(encoding="utf-8")
    names = list_pictures(folder).files
    assert all(f"| {name} |" in text for name in names)
    assert text.count("CC BY 2.0") >= len(names)
    assert sum((folder / name).stat().st_size for name in names) < 700_000
