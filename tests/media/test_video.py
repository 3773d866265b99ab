"""Every decoder gives exactly the frames that were chosen, upright, with their times; everything else is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.errors import MediaError, RecipeError
from mmalign.media.files import file_sha256, safe_path
from mmalign.media.frames import FrameChoice
from mmalign.media.read import MediaLimits, open_media
from mmalign.media.video import DECODERS, ClipLimits, inspect_clip, open_clip, why_not
from mmalign.types import Clip, Corruption, Frames, MediaRef, SampleRow
from tests.media.clips import CUT, FILMS, Film, number_of, write_broken
from tests.media.hostile import encoded, quarters

LIMITS = ClipLimits()
CHOICES = (FrameChoice(num_frames=5), FrameChoice(num_frames=1000), FrameChoice(num_frames=3, at="last"))

#: What decord cannot open, or would number wrongly, and therefore says.
NOT_FOR_DECORD = {
    "stream.ts": "mpegts surely",
    "av1.mp4": "knows no AV1",
    "av1.mkv": "knows no AV1",
    "mpeg4 b frames.avi": "",
    "old.mpg": "mpeg surely",
    "bare.h264": "",
    "moving.gif": "gif surely",
    "one frame.gif": "gif surely",
}


def opened(path: Path, choice: FrameChoice = CHOICES[0], limits: ClipLimits = LIMITS) -> Clip:
    return open_clip(path, MediaRef(path.name, "video"), limits, choice)


def frames_of(clip: Clip) -> Frames:
    assert clip.ref.frames is not None
    return clip.ref.frames


@pytest.fixture(scope="module", params=FILMS, ids=lambda film: film.name)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Film, Path]:
    return request.param, request.param.write(tmp_path_factory.mktemp("film"))


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_are_those_that_were_chosen(film: tuple[Film, Path], decoder: str) -> None:
    if reason := why_not(decoder):
        pytest.skip(reason)
    made, path = film
    limits = ClipLimits(decoder=decoder)  # type: ignore[arg-type]
    if decoder == "decord" and made.name in NOT_FOR_DECORD:
        with pytest.raises(MediaError, match=rf"{made.name}: .*{NOT_FOR_DECORD[made.name]}.*auto takes PyAV"):
            opened(path, limits=limits)
        return
    for choice in CHOICES:
        clip = opened(path, choice, limits)
        frames = frames_of(clip)
        assert frames.total == made.num
        assert frames.backend == decoder
        assert [number_of(image) for image in clip.images] == list(frames.numbers)
        assert len(clip.images) == min(choice.num_frames, made.num)
        assert clip.times == frames.times == pytest.approx([made.seconds()[n] for n in frames.numbers], abs=1e-3)
        assert {(image.size, image.mode) for image in clip.images} == {(made.size, "RGB")}
        if made.times is None and made.num > 1:
            assert frames.fps == pytest.approx(made.rate, rel=2e-3)


def test_frames_come_back(film: tuple[Film, Path]) -> None:
    _, path = film
    first = opened(path, CHOICES[2])
    ref = MediaRef.from_row(json.loads(json.dumps(first.ref.to_row())))
    assert ref == first.ref
    again = open_clip(path, ref, LIMITS, CHOICES[1])
    assert again.ref == first.ref
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in first.images]


def test_facts(film: tuple[Film, Path]) -> None:
    made, path = film
    facts = inspect_clip(path, path.name, ClipLimits(max_side=50))
    assert (facts.width, facts.height, facts.frames) == (*made.size, made.num)
    assert facts.sha256 == file_sha256(path)
    if made.num > 1:
        assert facts.seconds == pytest.approx(made.seconds()[-1] * made.num / (made.num - 1), rel=3e-3)


@pytest.mark.parametrize("made", CUT, ids=lambda made: made.name)
def test_of_a_file_that_is_cut_off_the_frames_before_are_used(made: Film, tmp_path: Path) -> None:
    path = made.write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    for choice in CHOICES:
        clip = opened(path, choice)
        frames = frames_of(clip)
        assert made.num // 2 <= frames.total <= made.num
        # At the cut a frame may be missing that is shown before one that is there.
        assert clip.times == pytest.approx([made.seconds()[number_of(image)] for image in clip.images], abs=1e-3)
        again = open_clip(path, clip.ref, LIMITS, CHOICES[0])
        assert [image.tobytes() for image in again.images] == [image.tobytes() for image in clip.images]


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    expected = write_broken(tmp_path)
    assert len(expected) >= 13
    for name, reason in expected.items():
        with pytest.raises(MediaError) as caught:
            opened(tmp_path / name)
        message = str(caught.value)
        assert reason in message, message
        assert message.startswith(f"{name}: ")
        assert "\n" not in message
        assert len(message) < 400
        assert str(tmp_path) not in message
    with pytest.raises(MediaError, match=r"none\.mp4: no such file"):
        opened(tmp_path / "none.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe\.mp4: is not a regular file"):
        opened(tmp_path / "pipe.mp4")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Film("plain.mkv", "libx264", options={"g": "24"}).write(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_seconds": 1.9}, r"lasts 1\.9 seconds, over the limit of 1\.9 seconds"),
        ({"max_frames": 47}, r"more than 47 frames"),
        ({"max_pixels": 192 * 96 - 1}, r"limit of 18431 pixels"),
        ({"max_bytes": 100}, r"more than the limit of 100"),
        ({"min_side": 97}, r"192x96 pixels; each side needs at least 97"),
        ({"max_ratio": 1.9}, r"may be at most 1\.9 times the shorter"),
    ],
)
def test_limits_hold(plain: Path, limits: dict[str, float], reason: str) -> None:
    with pytest.raises(MediaError, match=rf"plain\.mkv: .*{reason}"):
        opened(plain, limits=ClipLimits(**limits))  # type: ignore[arg-type]


def test_large_frames_are_scaled_down(plain: Path) -> None:
    clip = opened(plain, limits=ClipLimits(max_side=96))
    assert {image.size for image in clip.images} == {(96, 48)}
    assert [number_of(image) for image in clip.images] == list(frames_of(clip).numbers)


@pytest.mark.parametrize(
    "limits", [{"max_side": 0}, {"max_seconds": 0.0}, {"decode_seconds": -1.0}, {"decoder": "magic"}]
)
def test_wrong_limits(limits: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(limits))):
        ClipLimits(**limits)  # type: ignore[arg-type]


def test_a_length_in_the_header_is_not_believed(tmp_path: Path) -> None:
    path = Film("plain.mp4", "libx264").write(tmp_path)
    content = bytearray(path.read_bytes())
    for box in (b"mvhd", b"mdhd"):
        place = content.index(box) + 20  # version, flags, two dates, time scale; then the length
        content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    clip = opened(path)
    assert [number_of(image) for image in clip.images] == [4, 14, 24, 33, 43]
    assert inspect_clip(path, "plain.mp4", LIMITS).seconds == pytest.approx(48 / 25)


def test_references(plain: Path) -> None:
    ref = opened(plain).ref
    for wrong in (
        MediaRef("plain.mkv", "image"),
        MediaRef("plain.mkv", "video", corruptions=(Corruption("reverse", {}),)),
    ):
        with pytest.raises(MediaError, match=r"not a video|damaged clip"):
            open_clip(plain, wrong, LIMITS, CHOICES[0])
    changed = MediaRef("plain.mkv", "video", "0" * 64, frames=ref.frames)
    with pytest.raises(MediaError, match=r"plain\.mkv: has changed since"):
        open_clip(plain, changed, LIMITS, CHOICES[0])
    assert open_clip(plain, changed, LIMITS, CHOICES[0], verify=False).ref.sha256 == file_sha256(plain)
    frames = ref.frames
    assert frames is not None
    for other in (
        Frames(frames.numbers, tuple(time + 1 for time in frames.times), frames.fps, frames.total),
        Frames((99,), (9.9,), frames.fps, frames.total),
        Frames(frames.numbers, frames.times, frames.fps, 47),
    ):
        with pytest.raises(MediaError, match=r"plain\.mkv: does not hold the frames that were recorded"):
            open_clip(plain, MediaRef("plain.mkv", "video", frames=other), LIMITS, CHOICES[0])


def test_open_media_takes_both_kinds(tmp_path: Path) -> None:
    Film("clip.mkv", "libx264").write(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    row = SampleRow("x", (MediaRef("a.png"), MediaRef("clip.mkv", "video")))
    picture, clip = open_media(row, tmp_path, MediaLimits(frames=FrameChoice(num_frames=4))).media
    assert picture.ref.kind == "image"
    assert isinstance(clip, Clip)
    assert len(clip.images) == 4
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path)
    with pytest.raises(MediaError, match="outside of the data folder"):
        safe_path(inside, "out/clip.mkv")


@pytest.mark.parametrize("name", ["plain.mkv", "plain.mp4", "plain.webm", "plain.gif", "plain.ts", "plain.avi"])
def test_damage_anywhere_ends_in_a_reason_or_in_frames(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    codec = {"gif": "gif", "webm": "libvpx", "avi": "mpeg4"}.get(name.split(".")[1], "libx264")
    folder = tmp_path_factory.mktemp("damage")
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    content = Film(name, codec, num=12, pixels=pixels).write(folder).read_bytes()
    path = folder / f"damaged {name}"

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        cut=st.integers(1, len(content)),
        holes=st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=12),
    )
    def check(cut: int, holes: list[tuple[int, int]]) -> None:
        damaged = bytearray(content[:cut])
        for place, value in holes:
            damaged[place % cut] = value
        path.write_bytes(damaged)
        try:
            clip = opened(path, limits=ClipLimits(max_pixels=2_000_000))
        except MediaError as error:
            reason = str(error)
        else:
            reason = f"{path.name}: is fine"
            assert list(clip.times) == sorted(set(clip.times))
            assert len(clip.images) == len(frames_of(clip).numbers)
        assert reason.startswith(f"{path.name}: ")
        assert "\n" not in reason
        assert "failed (" not in reason  # an error that nobody meant

    check()
