"""Every corruption, as a rule: repeatable, recorded, visible. Then each one against numbers or another library."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from mmalign.corrupt import apply, corruption, corruption_names, draw
from mmalign.corrupt.noise import kept_signal
from mmalign.corrupt.region import box_side, shuffled_order
from mmalign.corrupt.registry import looks_equal
from mmalign.errors import MediaError, RecipeError
from mmalign.types import Corruption, MediaRef, Picture
from tests.media.hostile import quarters

NAMES = [
    "blank",
    "box_mask",
    "color_jitter",
    "crop",
    "diffusion_noise",
    "gaussian_blur",
    "gaussian_noise",
    "low_resolution",
    "patch_shuffle",
]


def picture(image: Image.Image) -> Picture:
    return Picture(image, MediaRef("a.png", sha256="0" * 64))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours, like a photograph out of focus."""
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@st.composite
def pictures(draw_value: st.DrawFn) -> Image.Image:
    """Small pictures, many of them nearly flat or of pure black and white, which are hard to change."""
    width, height = draw_value(st.integers(1, 40)), draw_value(st.integers(1, 40))
    palette = draw_value(
        st.sampled_from([[0, 255], [0], [255], [127], [245], [10, 245], [100, 101], [0, 1], list(range(0, 256, 5))])
    )
    colourful = draw_value(st.booleans())
    rng = np.random.RandomState(draw_value(st.integers(0, 2**32 - 1)))
    levels = rng.choice(palette, (height, width, 3 if colourful else 1)).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(levels, (height, width, 3)).copy())


def test_names() -> None:
    assert corruption_names() == NAMES
    # Those of pictures are done to clips too: tests/corrupt/test_clips.py.
    assert set(NAMES) < set(corruption_names("video"))


@given(name=st.sampled_from(NAMES), image=pictures(), seed=st.integers(0, 2**63))
@settings(max_examples=400, deadline=None)
def test_never_the_same_picture(name: str, image: Image.Image, seed: int) -> None:
    source = picture(image)
    before = image.tobytes()
    drawn = draw(name, random.Random(seed))
    assert drawn == draw(name, random.Random(seed))
    damaged = None
    with contextlib.suppress(MediaError):
        damaged = apply(source, drawn)
    assert image.tobytes() == before
    if damaged is None:
        # Only flat pictures, and ones so small that nothing in them can move or blur, are refused.
        assert len(set(image.get_flattened_data())) == 1 or image.width * image.height <= 64
        return
    assert not looks_equal(image, damaged.image)
    assert damaged.image.mode == "RGB"
    if name != "low_resolution":
        assert damaged.image.size == image.size
    (recorded,) = damaged.ref.corruptions
    assert recorded.name == name
    assert (damaged.ref.path, damaged.ref.sha256) == (source.ref.path, source.ref.sha256)
    ref = MediaRef.from_row(json.loads(json.dumps(damaged.ref.to_row(), allow_nan=False)))
    again = apply(source, ref.corruptions[0])
    assert again.image.tobytes() == damaged.image.tobytes()
    assert again.image.size == damaged.image.size
    assert again.ref.to_row() == damaged.ref.to_row()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_photographs_change_a_lot_with_the_drawn_parameters(name: str, seed: int) -> None:
    image = quarters((320, 240))
    drawn = draw(name, random.Random(seed))
    damaged = apply(picture(image), drawn)
    used = damaged.ref.corruptions[0].params
    assert {key: used[key] for key in drawn.params} == dict(drawn.params)
    after = damaged.image.resize(image.size, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(after).astype(int) - np.asarray(image)).max() > 20


@pytest.mark.parametrize("name", [name for name in NAMES if "noise" not in name and name != "box_mask"])
def test_a_flat_picture_is_refused(name: str) -> None:
    # Black stays black when its hue turns or its brightness is scaled.
    flat = Image.new("RGB", (32, 24), "black")
    ranges = {"colour": (0, 0, 0)} if name == "blank" else {}
    with pytest.raises(MediaError, match=rf"a\.png: cannot be corrupted by {name}.*32x24"):
        apply(picture(flat), draw(name, random.Random(0), **ranges))


def test_black_and_white_is_darkened_where_brightening_does_nothing() -> None:
    board = Image.fromarray(np.indices((32, 32)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    weak = Corruption("color_jitter", {"brightness": 1.4, "hue": 0.2, "order": ["brightness", "hue"]})
    damaged = apply(picture(board), weak)
    used = damaged.ref.corruptions[0].params
    assert used["brightness"] < 1
    assert used["hue"] == 0.2
    assert damaged.image.getextrema()[0][1] < 255


def test_corruptions_add_up() -> None:
    rng = random.Random(3)
    source = picture(photo(90, 60))
    first = apply(source, draw("crop", rng))
    second = apply(first, draw("low_resolution", rng))
    assert [entry.name for entry in second.ref.corruptions] == ["crop", "low_resolution"]
    assert source.ref.corruptions == ()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (26, 20)),
        ((480, 640), (20, 26)),
        ((64, 64), (20, 20)),
        ((500, 375), (26, 20)),
        ((2048, 60), (682, 20)),
        # Under three times the target a third is left.
        ((59, 100), (19, 32)),
        ((24, 24), (8, 8)),
        ((20, 30), (6, 9)),
        ((9, 8), (2, 2)),
        ((2, 4), (1, 2)),
    ],
)
def test_low_resolution_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert apply(picture(photo(*size)), draw("low_resolution", random.Random(0))).image.size == expected


@pytest.mark.parametrize("size", [(640, 480), (427, 640), (333, 500), (61, 400)])
def test_low_resolution_is_torchvisions_resize(size: tuple[int, int]) -> None:
    image = photo(*size)
    ours = apply(picture(image), draw("low_resolution", random.Random(0))).image
    theirs = functional.resize(image, 20, functional.InterpolationMode.BILINEAR)
    assert ours.size == theirs.size
    assert ours.tobytes() == theirs.tobytes()


@given(brightness=st.floats(0, 3), hue=st.floats(-0.5, 0.5), hue_first=st.booleans(), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_color_jitter_is_torchvisions(brightness: float, hue: float, hue_first: bool, seed: int) -> None:
    image = photo(23, 17, seed)
    steps = [
        ("brightness", lambda picture: functional.adjust_brightness(picture, brightness)),
        ("hue", lambda picture: functional.adjust_hue(picture, hue)),
    ]
    steps = steps[::-1] if hue_first else steps
    theirs = image
    for _, step in steps:
        theirs = step(theirs)
    assume(theirs.tobytes() != image.tobytes())
    drawn = Corruption("color_jitter", {"brightness": brightness, "hue": hue, "order": [name for name, _ in steps]})
    assert apply(picture(image), drawn).image.tobytes() == theirs.tobytes()


def test_color_jitter_against_torchvisions_tensors() -> None:
    # The tensor code computes in floats: an independent check of the colours, to within the rounding of 8-bit HSV.
    image = quarters((40, 40))
    tensor = functional.pil_to_tensor(image).float() / 255
    theirs = functional.adjust_hue(functional.adjust_brightness(tensor, 0.7), 0.25) * 255
    drawn = Corruption("color_jitter", {"brightness": 0.7, "hue": 0.25, "order": ["brightness", "hue"]})
    ours = functional.pil_to_tensor(apply(picture(image), drawn).image).float()
    assert (ours - theirs).abs().max() <= 5


def test_color_jitter_ranges_are_those_of_the_paper() -> None:
    rng = random.Random(0)
    drawn = [draw("color_jitter", rng).params for _ in range(4000)]
    brightness, hue = [entry["brightness"] for entry in drawn], [entry["hue"] for entry in drawn]
    assert 0.5 <= min(brightness) < 0.51
    assert 1.49 < max(brightness) <= 1.5
    assert -0.3 <= min(hue) < -0.29
    assert 0.29 < max(hue) <= 0.3
    assert sum(brightness) / 4000 == pytest.approx(1, abs=0.02)
    # Six standard deviations of a fair coin.
    assert sum(entry["order"][0] == "hue" for entry in drawn) == pytest.approx(2000, abs=190)


def test_gaussian_noise_has_its_spread() -> None:
    image = Image.new("RGB", (100, 100), (127, 127, 127))
    noise = np.asarray(apply(picture(image), Corruption("gaussian_noise", {"sigma": 20.0, "seed": 5})).image) - 127.0
    assert noise.mean() == pytest.approx(0, abs=0.7)
    assert noise.std() == pytest.approx(20, rel=0.03)
    other = apply(picture(image), Corruption("gaussian_noise", {"sigma": 20.0, "seed": 6})).image
    assert other.tobytes() != (noise + 127).astype(np.uint8).tobytes()


def test_noise_stream_is_pinned() -> None:
    # RandomState(0).standard_normal begins 1.764052, 0.400157, 0.978738, 2.240893: known to every reader of NumPy.
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    noisy = apply(picture(image), Corruption("gaussian_noise", {"sigma": 10.0, "seed": 0})).image
    assert noisy.getpixel((0, 0)) == (118, 104, 110)
    assert noisy.getpixel((1, 0))[0] == 122


def test_diffusion_schedule_is_that_of_vcd() -> None:
    # By hand: beta runs from 1e-5 + sigmoid(-6) * 0.00499 to 1e-5 + sigmoid(6) * 0.00499.
    first, last = 1e-5 + 0.00499 * 0.0024726232, 1e-5 + 0.00499 * 0.9975273768
    kept = kept_signal()
    assert len(kept) == 1000
    assert kept[0] == pytest.approx(1 - first, abs=1e-9)
    assert kept[-1] / kept[-2] == pytest.approx(1 - last, abs=1e-9)
    assert np.all(np.diff(kept) < 0)
    # The sigmoid s is symmetric, so all betas add up to 1000 * 0.002505, and s' = s - s^2 gives the sum of s^2 as
    # 1000 * (6 - 0.99505) / 12 = 417.1: log kept = -(2.505 + 0.00499^2 / 2 * 417.1) = -2.5102.
    assert np.log(kept[-1]) == pytest.approx(-2.5102, abs=1e-4)


def test_diffusion_noise_keeps_its_share_of_the_signal() -> None:
    image = Image.new("RGB", (200, 200), (191, 191, 191))
    noisy = np.asarray(apply(picture(image), Corruption("diffusion_noise", {"step": 100, "seed": 1})).image) / 127.5 - 1
    kept = kept_signal()[100]
    assert noisy.mean() == pytest.approx(np.sqrt(kept) * (191 / 127.5 - 1), abs=0.002)
    assert noisy.std() == pytest.approx(np.sqrt(1 - kept), rel=0.02)


def test_box_covers_its_share() -> None:
    image = quarters((100, 100))
    drawn = Corruption("box_mask", {"area": 0.25, "x": 1.0, "y": 0.0, "level": 245})
    after = np.asarray(apply(picture(image), drawn).image)
    covered = (after == 245).all(axis=2)
    assert covered.sum() == 2500
    assert covered[:50, 50:].all()


def test_box_is_that_of_the_figure() -> None:
    # RRPO's figure: 141 pixels of a 316x204 frame are 31 % of it.
    assert box_side(316, 204, 0.31) == 141
    assert box_side(316, 204, 0.5) == 180
    assert box_side(316, 204, 1.0) == 204
    assert box_side(3, 200, 0.25) == 3
    assert box_side(1, 1, 0.25) == 1


def test_box_is_drawn_as_in_the_paper() -> None:
    rng = random.Random(0)
    drawn = [draw("box_mask", rng).params for _ in range(4000)]
    areas = [entry["area"] for entry in drawn]
    assert 0.25 <= min(areas) < 0.251
    assert 0.499 < max(areas) <= 0.5
    assert sum(areas) / 4000 == pytest.approx(0.375, abs=0.005)
    assert {entry["level"] for entry in drawn} == {245}


@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_box_is_a_square_inside_the_picture(width: int, height: int, seed: int) -> None:
    drawn = draw("box_mask", random.Random(seed))
    image = Image.new("RGB", (width, height))
    left, top, right, bottom = apply(picture(image), drawn).ref.corruptions[0].params["box"]
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    side = right - left
    assert side == bottom - top
    exact = (drawn.params["area"] * width * height) ** 0.5
    assert side == min(width, height) < exact or abs(side - exact) <= 0.5 or side == 1


def test_a_recorded_box_is_covered_again() -> None:
    drawn = {"area": 0.25, "x": 1.0, "y": 0.0, "level": 245, "box": [3, 5, 10, 12]}
    after = np.asarray(apply(picture(quarters((40, 40))), Corruption("box_mask", drawn)).image)
    covered = (after == 245).all(axis=2)
    assert covered.sum() == 49
    assert covered[5:12, 3:10].all()


def test_box_of_the_fillings_colour_falls_back_to_the_other_grey() -> None:
    image = Image.new("RGB", (40, 40), (245, 245, 245))
    image.putpixel((0, 0), (0, 0, 0))
    drawn = Corruption("box_mask", {"area": 0.25, "x": 1.0, "y": 1.0, "level": 245})
    damaged = apply(picture(image), drawn)
    assert damaged.ref.corruptions[0].params["level"] == 10


def test_crop_shows_its_part() -> None:
    image = quarters((100, 80))
    drawn = Corruption("crop", {"area": 0.01, "x": 0.0, "y": 1.0})
    after = apply(picture(image), drawn).image
    assert after.size == (100, 80)
    assert after.getextrema() == tuple((level, level) for level in image.getpixel((0, 79)))


@given(columns=st.integers(2, 9), width=st.integers(8, 60), height=st.integers(8, 60), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_patches_change_places_and_nothing_else(columns: int, width: int, height: int, seed: int) -> None:
    image = Image.fromarray(np.arange(width * height * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3))
    after = apply(picture(image), Corruption("patch_shuffle", {"grid": columns, "seed": seed})).image
    before_pixels, after_pixels = list(image.get_flattened_data()), list(after.get_flattened_data())
    assert sorted(before_pixels) == sorted(after_pixels)
    assert before_pixels != after_pixels


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_orders_are_never_the_one_given(count: int, seed: int) -> None:
    corners = [(index, 0) for index in range(count)]
    order = shuffled_order(corners, seed)
    assert order != corners
    assert sorted(order) == corners


def test_order_is_pinned() -> None:
    # random.Random(0).random() gives .844, .758, .421, .259, .511, .405: sorted, their places are 3 5 2 4 1 0.
    assert [index for index, _ in shuffled_order([(i, 0) for i in range(6)], 0)] == [3, 5, 2, 4, 1, 0]


def test_blur_grows_with_the_picture() -> None:
    small, large = quarters((60, 40)), quarters((600, 400))
    drawn = Corruption("gaussian_blur", {"radius": 0.05})
    blurred = [apply(picture(image), drawn).image.resize((60, 40)) for image in (small, large)]
    difference = np.abs(np.asarray(blurred[0]).astype(int) - np.asarray(blurred[1]))
    assert difference.mean() < 3


def test_ranges_replace_the_defaults() -> None:
    assert draw("gaussian_noise", random.Random(0), sigma=[7, 7]).params["sigma"] == 7
    assert draw("low_resolution", random.Random(0), short_side=8).params == {"short_side": 8}
    assert draw("diffusion_noise", random.Random(0), step=(999, 999)).params["step"] == 999
    assert draw("blank", random.Random(0), colour=[1, 2, 3]).params == {"colour": [1, 2, 3]}


@pytest.mark.parametrize(
    ("name", "ranges", "message"),
    [
        ("low_resolutoin", {}, "unknown corruption 'low_resolutoin', did you mean 'low_resolution'"),
        ("low_resolution", {"short_sides": 3}, "unknown range 'short_sides', did you mean 'short_side'"),
        ("low_resolution", {"short_side": 0}, "whole number from 1"),
        ("low_resolution", {"short_side": "20"}, "got '20'"),
        ("color_jitter", {"hue": (-0.6, 0.1)}, r"color_jitter\.hue: got \(-0\.6, 0\.1\)"),
        ("color_jitter", {"brightness": 0.5}, "need \\[least, greatest\\]"),
        ("color_jitter", {"brightness": ("a", "b")}, "need \\[least, greatest\\]"),
        ("gaussian_noise", {"sigma": (9, 5)}, "need \\[least, greatest\\]"),
        ("patch_shuffle", {"grid": (2.5, 3.5)}, "whole number from 2 to 64"),
        ("diffusion_noise", {"step": (1, 1000)}, "within 1 to 999"),
        ("box_mask", {"level": 300}, "from 0 to 255"),
        ("blank", {"colour": (0, 0)}, "three whole numbers"),
    ],
)
def test_wrong_names_and_ranges(name: str, ranges: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(name, random.Random(0), **ranges)


def test_a_name_is_registered_once() -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match="exists already"):
        corruption("blank")(Other)
