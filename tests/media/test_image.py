"""Every kind of picture opens upright and right in colour; everything else is refused with its reason."""

from __future__ import annotations

import hashlib
import threading
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from mmalign.errors import MediaError, RecipeError
from mmalign.media.decode import PILLOW_MAX_PIXELS
from mmalign.media.image import (
    PictureLimits,
    decode_picture,
    file_sha256,
    inspect_picture,
    open_picture,
    safe_path,
)
from mmalign.media.pixels import to_rgb
from mmalign.media.quiet import quiet_pillow
from mmalign.media.read import MediaLimits, open_media
from mmalign.types import Corruption, MediaRef, Picture, SampleRow
from tests.media.hostile import QUARTERS, SIZE, encoded, grey_ramp, quarters, rotated_by_exif, write_hostile_folder

LIMITS = PictureLimits()


def opened(root: Path, name: str, limits: PictureLimits = LIMITS) -> Picture:
    return open_picture(safe_path(root, name), MediaRef(name), limits)


def decoded(content: bytes, limits: PictureLimits = LIMITS) -> Image.Image:
    return decode_picture(content, "case", limits)[0]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | None]]:
    root = tmp_path_factory.mktemp("media") / "hostile"
    return root, write_hostile_folder(root)


def test_hostile_folder(hostile: tuple[Path, dict[str, str | None]]) -> None:
    root, expected = hostile
    assert sum(reason is None for reason in expected.values()) >= 35
    for name, reason in expected.items():
        if reason is None:
            picture = opened(root, name)
            assert type(picture.image) is Image.Image
            assert picture.image.mode == "RGB"
            assert picture.image.info == {}
            assert picture.ref == MediaRef(name, sha256=file_sha256(root / name))
        else:
            with pytest.raises(MediaError) as caught:
                opened(root, name)
            message = str(caught.value)
            assert reason in message, name
            assert message.startswith(f"{name}: ")
            assert "\n" not in message
            assert len(message) < 400


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    content = rotated_by_exif(orientation)
    image, facts = decode_picture(content, "case", LIMITS)
    assert image.size == (facts.width, facts.height) == SIZE
    assert np.abs(levels(image) - levels(quarters())).mean() < 3
    with Image.open(BytesIO(content)) as raw:
        assert image.tobytes() == ImageOps.exif_transpose(raw).convert("RGB").tobytes()


def test_exif_orientation_of_tiff_and_of_reduced_pictures() -> None:
    stored = quarters((600, 400)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (encoded(stored, "TIFF", exif=exif), encoded(stored, "JPEG", quality=95, exif=exif)):
        image, facts = decode_picture(content, "case", PictureLimits(max_side=150))
        assert (facts.width, facts.height) == (600, 400)
        assert image.size == (150, 100)
        assert np.abs(levels(image) - levels(quarters((150, 100)))).mean() < 4


def test_orientation_that_makes_no_sense_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decoded(encoded(quarters(), "PNG", exif=exif)).tobytes() == quarters().tobytes()


@pytest.mark.parametrize("name", ["cmyk.jpg", "cmyk.tif"])
def test_cmyk_keeps_its_colours(hostile: tuple[Path, dict[str, str | None]], name: str) -> None:
    image = levels(opened(hostile[0], name).image)
    width, height = SIZE
    for (x, y), colour in zip(((0, 0), (1, 0), (1, 1), (0, 1)), QUARTERS, strict=True):
        middle = image[height // 4 + y * height // 2, width // 4 + x * width // 2]
        # Pillow's conversion to CMYK and back is exact but for rounding; an inverted file would be off by 200.
        assert np.abs(middle - colour).max() <= 6


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "float.tif"])
def test_deep_greys_are_scaled(hostile: tuple[Path, dict[str, str | None]], name: str) -> None:
    image = levels(opened(hostile[0], name).image)
    expected = np.linspace(0, 255, SIZE[0])
    assert np.abs(image - expected[None, :, None]).max() <= 1
    assert image.min() == 0
    assert image.max() == 255


def test_deep_colours_are_scaled(hostile: tuple[Path, dict[str, str | None]]) -> None:
    assert np.abs(levels(opened(hostile[0], "deep.png").image) - levels(quarters())).max() <= 1


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_16_bit_rounding(values: list[int]) -> None:
    array = np.array([values], dtype=np.uint16)
    for image in (Image.fromarray(array), Image.fromarray(array.astype(np.int32))):
        shown = levels(to_rgb(image))[0, :, 0]
        assert np.abs(shown - np.array(values) / 257).max() <= 0.5


def test_32_bit_and_float_ranges() -> None:
    cases = [
        (np.array([[-100, 100]], np.int32), [0, 255]),
        (np.array([[0, 1_000_000]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 12.0, 255.0]], np.float32), [0, 12, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[7.0e9, 7.0e9]], np.float32), [0, 0]),
    ]
    for array, expected in cases:
        assert levels(to_rgb(Image.fromarray(array)))[0, :, 0].tolist() == expected
    with pytest.raises(ValueError, match="not finite"):
        to_rgb(Image.fromarray(np.array([[np.inf]], np.float32)))


def test_transparency_is_white_paper() -> None:
    for mode in ("RGBA", "LA"):
        image = quarters().convert(mode)
        image.putalpha(0)
        assert decoded(encoded(image, "PNG")).getextrema() == ((255, 255),) * 3
    half = Image.new("RGBA", SIZE, (0, 0, 0, 128))
    assert decoded(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_a_hole(hostile: tuple[Path, dict[str, str | None]]) -> None:
    image = opened(hostile[0], "palette hole.png").image
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert np.abs(np.array(image.getpixel((70, 10))) - QUARTERS[1]).max() < 12


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_first_frame_of_an_animation(hostile: tuple[Path, dict[str, str | None]], name: str) -> None:
    facts = inspect_picture(hostile[0] / name, name, LIMITS)
    assert facts.frames == 3
    assert np.abs(levels(opened(hostile[0], name).image) - levels(quarters())).max() < 12


def test_facts(hostile: tuple[Path, dict[str, str | None]]) -> None:
    content = (hostile[0] / "large.jpg").read_bytes()
    facts = decode_picture(content, "case", LIMITS)[1]
    assert (facts.format, facts.mode, facts.width, facts.height, facts.frames) == ("JPEG", "RGB", 3000, 2000, 1)
    assert (facts.num_bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_large_pictures_are_scaled_down(format: str) -> None:
    image = decoded(encoded(quarters((1200, 900)), format), PictureLimits(max_side=200))
    assert image.size == (200, 150)
    assert np.abs(levels(image) - levels(quarters((200, 150)))).mean() < 3
    # Exactly at the limit nothing is resampled.
    assert decoded(encoded(quarters((200, 150)), "PNG"), PictureLimits(max_side=200)).tobytes() == (
        quarters((200, 150)).tobytes()
    )


def test_size_is_checked_before_pixels_are_decoded(
    hostile: tuple[Path, dict[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for name in ("huge header.png", "large header.png", "bomb.png", "dot.png", "ribbon.png"):
        with pytest.raises(MediaError, match="pixels"):
            decoded((hostile[0] / name).read_bytes())
    with pytest.raises(MediaError, match="over the limit of 6143 pixels"):
        decoded((hostile[0] / "plain.jpg").read_bytes(), PictureLimits(max_pixels=96 * 64 - 1))


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"max_side": 0}, {"max_pixels": PILLOW_MAX_PIXELS + 1}])
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="must be at"):
        PictureLimits(**limits)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@given(share=st.floats(0.02, 0.95))
@settings(max_examples=15)
def test_cut_files_never_open(format: str, share: float) -> None:
    rng = np.random.RandomState(1)
    content = encoded(Image.fromarray(rng.randint(0, 256, (40, 50, 3), np.uint8)), format)
    with pytest.raises(MediaError, match=r"^case: "):
        decoded(content[: int(len(content) * share)])


@given(st.data())
@settings(max_examples=200)
def test_damaged_bytes_open_or_are_refused(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "AVIF"]))
    content = bytearray(encoded(quarters(), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    image, reason = None, ""
    try:
        image = decoded(bytes(content), PictureLimits(max_pixels=200_000))
    except MediaError as error:
        reason = str(error)
    assert image.mode == "RGB" if image else reason.startswith("case: ")
    assert "\n" not in reason


def test_file_that_changed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    ref = opened(tmp_path, "a.png").ref
    (tmp_path / "a.png").write_bytes(encoded(quarters(shade=1), "PNG"))
    with pytest.raises(MediaError, match=r"a\.png: has changed"):
        open_picture(tmp_path / "a.png", ref, LIMITS)
    again = open_picture(tmp_path / "a.png", ref, LIMITS, verify=False)
    assert again.ref.sha256 == file_sha256(tmp_path / "a.png") != ref.sha256


def test_references_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    with pytest.raises(MediaError, match="is a video, not a picture"):
        open_picture(tmp_path / "a.png", MediaRef("a.png", "video"), LIMITS)
    with pytest.raises(MediaError, match="names a damaged picture"):
        open_picture(tmp_path / "a.png", MediaRef("a.png", corruptions=(Corruption("blank", {}),)), LIMITS)


def test_open_media(tmp_path: Path) -> None:
    for shade, name in ((0, "a.png"), (9, "b.png")):
        (tmp_path / name).write_bytes(encoded(quarters(shade=shade), "PNG"))
    row = SampleRow("x", (MediaRef("a.png"), MediaRef("b.png")), "What?", "Be brief.", {"k": 1})
    sample = open_media(row, tmp_path, MediaLimits())
    assert (sample.id, sample.prompt, sample.system, sample.meta) == ("x", "What?", "Be brief.", {"k": 1})
    assert [picture.image.tobytes() for picture in sample.media] == [
        quarters().tobytes(),
        quarters(shade=9).tobytes(),
    ]
    with pytest.raises(MediaError, match="leaves the data folder"):
        open_media(SampleRow("x", (MediaRef("../a.png"),)), tmp_path / "sub", MediaLimits())
    assert open_media(SampleRow("t", (), "Hello"), tmp_path, MediaLimits()).media == ()


def test_pillow_is_not_told_to_accept_cut_files() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_quiet_ends_with_the_last_reader() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with quiet_pillow():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    assert inside.wait(10)
    with quiet_pillow():
        during = list(warnings.filters)
    still = list(warnings.filters)
    leave.set()
    thread.join()
    assert len(during) == len(still) == len(before) + 1
    assert list(warnings.filters) == before


def test_quiet_only_silences_pillow() -> None:
    with quiet_pillow():
        warnings.warn_explicit("said by Pillow", UserWarning, "Image.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="said by us"):
            warnings.warn("said by us", UserWarning, stacklevel=1)


def test_grey_ramp_is_16_bit() -> None:
    assert grey_ramp().mode == "I;16"
