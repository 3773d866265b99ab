"""What a pair file recorded opens again to the very same pixels."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mmalign.corrupt import apply, corruption_names, draw, reopen
from mmalign.errors import MediaError
from mmalign.media.image import PictureLimits, open_picture, safe_path
from mmalign.types import MediaRef
from tests.media.hostile import encoded, quarters, rotated_by_exif

LIMITS = PictureLimits(max_side=80)


@pytest.mark.parametrize("name", corruption_names())
def test_reopened_pixels_are_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(rotated_by_exif(6))
    rng = random.Random(1)
    picture = open_picture(safe_path(tmp_path, "a.jpg"), MediaRef("a.jpg"), LIMITS)
    assert picture.image.size == (80, 53)
    damaged = apply(apply(picture, draw("gaussian_noise", rng)), draw(name, rng))
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row())))
    again = reopen(ref, tmp_path, LIMITS)
    assert again.image.tobytes() == damaged.image.tobytes()
    assert again.ref.to_row() == damaged.ref.to_row()
    assert reopen(picture.ref, tmp_path, LIMITS).image.tobytes() == picture.image.tobytes()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    ref = MediaRef("a.png", sha256="0" * 64)
    with pytest.raises(MediaError, match=r"a\.png: has changed"):
        reopen(ref, tmp_path, LIMITS)
    assert reopen(ref, tmp_path, LIMITS, verify_sha=False).image.size == (80, 53)


def test_a_reference_cannot_leave_the_data_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="leaves the data folder"):
        reopen(replace(MediaRef("x"), path="../x.png"), tmp_path, LIMITS)
