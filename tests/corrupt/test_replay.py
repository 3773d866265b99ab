"""What a pair file recorded opens again to the very same pixels."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.corrupt import apply, corruption_names, draw, reopen, swap
from mmalign.errors import MediaError
from mmalign.media.image import PictureLimits, open_picture, safe_path
from mmalign.media.read import MediaLimits
from mmalign.types import Clip, Media, MediaRef
from tests.media.hostile import encoded, quarters, rotated_by_exif

LIMITS = MediaLimits(picture=PictureLimits(max_side=80))


@pytest.mark.parametrize("name", corruption_names())
def test_reopened_pixels_are_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(rotated_by_exif(6))
    rng = random.Random(1)
    picture = open_picture(safe_path(tmp_path, "a.jpg"), MediaRef("a.jpg"), LIMITS.picture)
    assert picture.image.size == (80, 53)
    damaged = apply(apply(picture, draw("gaussian_noise", rng)), draw(name, rng))
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row())))
    again = reopen(ref, tmp_path, LIMITS)
    assert again.image.tobytes() == damaged.image.tobytes()
    assert again.ref.to_row() == damaged.ref.to_row()
    assert reopen(picture.ref, tmp_path, LIMITS).image.tobytes() == picture.image.tobytes()


def film(path: Path, seed: int, num: int = 9, size: tuple[int, int] = (40, 30)) -> None:
    """An animated GIF, every frame of which differs."""
    rng, (width, height) = np.random.RandomState(seed), size
    frames = [Image.fromarray(rng.randint(0, 256, (height, width), np.uint8)).convert("P") for _ in range(num)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    film(root / "a.gif", 0)
    film(root / "b.gif", 20, num=5, size=(30, 40))
    return root


def opened(root: Path, name: str) -> Clip:
    clip = reopen(MediaRef(name, "video"), root, LIMITS)
    assert isinstance(clip, Clip)
    assert clip.ref.frames is not None
    return clip


def same(first: Media, second: Media) -> bool:
    assert isinstance(first, Clip)
    assert isinstance(second, Clip)
    pixels = [[(image.size, image.tobytes()) for image in clip.images] for clip in (first, second)]
    return pixels[0] == pixels[1] and first.times == second.times and first.ref.to_row() == second.ref.to_row()


@pytest.mark.parametrize("name", [name for name in corruption_names("video") if name != "clip_swap"])
def test_reopened_clips_are_the_same(films: Path, name: str) -> None:
    rng = random.Random(1)
    damaged = apply(apply(opened(films, "a.gif"), draw("box_mask", rng)), draw(name, rng))
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row())))
    assert same(reopen(ref, films, LIMITS), damaged)


def test_reopened_swaps_are_the_same(films: Path) -> None:
    rng = random.Random(1)
    # The other clip is damaged itself, by a third one.
    other = swap(apply(opened(films, "b.gif"), draw("reverse", rng)), opened(films, "a.gif"), rng, share=(0.2, 0.2))
    damaged = apply(swap(opened(films, "a.gif"), other, rng), draw("drop_frames", rng))
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row())))
    assert same(reopen(ref, films, LIMITS), damaged)


def test_a_changed_other_clip_is_refused(films: Path, tmp_path: Path) -> None:
    damaged = swap(opened(films, "a.gif"), opened(films, "b.gif"), random.Random(1))
    (tmp_path / "a.gif").write_bytes((films / "a.gif").read_bytes())
    film(tmp_path / "b.gif", 5, num=5)
    with pytest.raises(MediaError, match=r"b\.gif: has changed"):
        reopen(damaged.ref, tmp_path, LIMITS)
    assert isinstance(reopen(damaged.ref, tmp_path, LIMITS, verify_sha=False), Clip)


def test_another_clip_cannot_leave_the_data_folder(films: Path) -> None:
    damaged = swap(opened(films, "a.gif"), opened(films, "b.gif"), random.Random(1))
    row = json.loads(json.dumps(damaged.ref.to_row()).replace('"b.gif"', '"../b.gif"'))
    with pytest.raises(MediaError, match="leaves the data folder"):
        reopen(MediaRef.from_row(row), films, LIMITS)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    ref = MediaRef("a.png", sha256="0" * 64)
    with pytest.raises(MediaError, match=r"a\.png: has changed"):
        reopen(ref, tmp_path, LIMITS)
    assert reopen(ref, tmp_path, LIMITS, verify_sha=False).image.size == (80, 53)


def test_a_reference_cannot_leave_the_data_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="leaves the data folder"):
        reopen(replace(MediaRef("x"), path="../x.png"), tmp_path, LIMITS)
