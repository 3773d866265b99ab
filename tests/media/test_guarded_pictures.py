"""Pictures are decoded in a process of their own: what hangs, crashes or takes too much memory costs its file only."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import MediaError
from mmalign.media import image as images
from mmalign.media import pixels, video
from mmalign.media.decode import PictureLimits, decode_picture
from mmalign.media.frames import FrameChoice
from mmalign.media.guard import Guard
from mmalign.media.image import inspect_picture, open_picture
from mmalign.media.pixels import to_rgb
from mmalign.media.video import ClipLimits, open_clip
from mmalign.types import MediaRef
from tests.fuzz.pictures import whole_png
from tests.media.clips import Film
from tests.media.hostile import SIZE, encoded, grey_ramp, quarters

LIMITS = PictureLimits()


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    guard = Guard("tests.media.bad_child")
    monkeypatch.setattr(images, "GUARD", guard)
    monkeypatch.setattr(video, "GUARD", guard)
    yield guard
    guard.close()


def opened(path: Path, seconds: float = 300.0) -> Image.Image:
    return open_picture(path, MediaRef(path.name), PictureLimits(decode_seconds=seconds)).image


def test_the_pixels_and_the_facts_are_those_of_decoding_here(tmp_path: Path) -> None:
    for name, content in (
        ("a.png", encoded(quarters(), "PNG")),
        ("b.jpg", encoded(quarters((900, 700)), "JPEG")),
        ("c.tif", encoded(grey_ramp(), "TIFF")),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        here, facts = decode_picture(content, name, PictureLimits(max_side=300))
        there = open_picture(path, MediaRef(name), PictureLimits(max_side=300))
        assert there.image.mode == "RGB"
        assert there.image.tobytes() == here.tobytes()
        assert there.ref.sha256 == hashlib.sha256(content).hexdigest()
        assert inspect_picture(path, name, PictureLimits(max_side=300)) == facts


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs.png", "was not decoded within 1.5 seconds"),
        ("crashes.png", "its decoder crashed (SIGSEGV); it may be damaged"),
    ],
)
def test_a_bad_decoder_costs_its_picture(name: str, reason: str, guard: Guard, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    for path in (good, tmp_path / name):
        path.write_bytes(encoded(quarters(), "PNG"))
    assert opened(good).size == SIZE
    with pytest.raises(MediaError) as caught:
        opened(tmp_path / name, 1.5 if "hangs" in name else 300.0)
    assert str(caught.value).startswith(f"{name}: {reason}")
    assert opened(good).size == SIZE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process in this way")
def test_the_system_refuses_a_decoder_more_memory(guard: Guard, tmp_path: Path) -> None:
    large, good = tmp_path / "large.png", tmp_path / "good.png"
    large.write_bytes(whole_png(9900, 8, 2))
    good.write_bytes(encoded(quarters(), "PNG"))
    with pytest.raises(MediaError, match=r"large\.png: takes more memory to decode than a decoder may have"):
        opened(large)
    assert opened(good).size == SIZE
    assert len(guard._idle) == 1  # the same child


def test_frames_of_a_clip_have_a_bound(guard: Guard, tmp_path: Path) -> None:
    path = Film("a.mkv", "mpeg4", num=5).write(tmp_path)
    limits = ClipLimits(decode_seconds=300)
    assert len(open_clip(path, MediaRef("a.mkv", "video"), limits, FrameChoice(num_frames=2)).images) == 2
    with pytest.raises(MediaError, match=r"a\.mkv: 3 frames of 192x96 pixels take more than 147456 bytes"):
        open_clip(path, MediaRef("a.mkv", "video"), limits, FrameChoice(num_frames=3))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_a_picture_takes_eight_bytes_a_pixel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard = Guard()
    monkeypatch.setattr(images, "GUARD", guard)
    peaks = []
    for side in (50, 7000):
        path = tmp_path / f"{side}.png"
        path.write_bytes(whole_png(side, 16, 0))
        opened(path)
        (child,) = guard._idle
        status = Path(f"/proc/{child._process.pid}/status").read_text()
        peaks.append(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]))
    guard.close()
    assert (peaks[1] - peaks[0]) * 1024 < 8 * 7000**2 + 2**26, peaks  # and what a strip takes


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        (b"VP8X", bytes(4) + (19_999).to_bytes(3, "little") + (9_999).to_bytes(3, "little")),
        (b"VP8L", b"\x2f" + (16_383 | 9_999 << 14).to_bytes(4, "little") + bytes(5)),
        (b"VP8 ", bytes(6) + struct.pack("<HH", 16_383, 10_000)),
    ],
)
def test_a_large_webp_is_refused_before_its_reader_begins(
    kind: bytes, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("begun")

    monkeypatch.setattr(Image, "open", refuse)
    content = b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + start + bytes(100)
    with pytest.raises(MediaError, match=r"is (20000|16384|16383)x10000 pixels large, over the limit"):
        decode_picture(content, "a.webp", LIMITS)


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"save_all": True, "append_images": [quarters((123, 45), 9)]}]
)
def test_the_header_of_a_webp_is_read_as_its_reader_does(options: dict[str, object]) -> None:
    content = encoded(quarters((123, 45)), "WEBP", **options)
    with pytest.raises(MediaError, match="is 123x45 pixels large"):
        decode_picture(content, "a.webp", PictureLimits(max_pixels=123 * 45 - 1))
    assert decode_picture(content, "a.webp", PictureLimits(max_pixels=123 * 45))[0].size == (123, 45)


def _modes() -> dict[str, Image.Image]:
    noise = np.random.RandomState(0).randint(0, 256, (61, 50, 4), np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    clear = rgba.convert("RGB").convert("P")
    clear.info["transparency"] = 3
    wide = noise[:, :, 0].astype(np.int32) * 300 - 5
    return {
        **{mode: rgba.convert("RGB").convert(mode) for mode in ("L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV")},
        **{"RGBA": rgba, "LA": rgba.convert("LA"), "clear": clear},
        **{"I": Image.fromarray(wide), "I small": Image.fromarray(np.abs(wide) % 60_000)},
        "I;16": Image.fromarray((np.abs(wide) % 65_535).astype(np.uint16)),
        **{f"F {top}": Image.fromarray((wide / wide.max() * top).clip(0).astype(np.float32)) for top in (1, 200)},
        "F wide": Image.fromarray(wide.astype(np.float32)),
    }


@pytest.mark.parametrize("name", sorted(_modes()))
def test_pictures_converted_in_strips_are_those_converted_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _modes()[name]
    whole = to_rgb(image)
    monkeypatch.setattr(pixels, "STRIP", 7 * image.width)
    assert to_rgb(image).tobytes() == whole.tobytes()
    monkeypatch.setattr(pixels, "STRIP", 1)
    assert to_rgb(image).tobytes() == whole.tobytes()
