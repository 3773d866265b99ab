"""Real clips, where the machine has them: every decoder that loads shows the same frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmalign.errors import MediaError
from mmalign.media.frames import FrameChoice
from mmalign.media.video import ClipLimits, inspect_clip, open_clip, why_not
from mmalign.types import MediaRef

FOLDER = Path(__file__).parents[3] / "shared" / "media" / "videos"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")


def known() -> list[dict[str, str]]:
    path = FOLDER / "index.json"
    found: list[dict[str, str]] = json.loads(path.read_text()) if path.is_file() else []
    return found


@pytest.mark.parametrize("entry", known(), ids=lambda entry: entry["file"])
def test_a_real_clip(entry: dict[str, str]) -> None:
    path, name = FOLDER / entry["file"], entry["file"]
    limits, choice = ClipLimits(max_side=160), FrameChoice(num_frames=6)
    facts = inspect_clip(path, name, limits)
    assert facts.sha256 == entry["sha256"]
    clip = open_clip(path, MediaRef(name, "video"), limits, choice)
    frames = clip.ref.frames
    assert frames is not None
    assert len(clip.images) == 6
    # "1189f h264 640x360 29.8fps", as PyAV itself counted by decoding everything.
    count, _, size, rate = entry["av"].split()
    if (facts.width, facts.height) == tuple(map(int, size.split("x"))):  # of two streams another may be meant
        assert facts.frames == int(count.removesuffix("f"))
        if path.suffix != ".gif":  # whose own word on its rate is a guess
            assert facts.fps == pytest.approx(float(rate.removesuffix("fps")), rel=0.02)
    again = open_clip(path, clip.ref, limits, choice)
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in clip.images]
    for decoder in ("decord", "torchcodec"):
        if why_not(decoder):
            continue
        theirs = replace(limits, decoder=decoder)  # type: ignore[arg-type]
        if decoder == "decord" and path.suffix == ".gif":
            with pytest.raises(MediaError, match="decord does not number the frames of gif surely"):
                open_clip(path, MediaRef(name, "video"), theirs, choice)
            continue
        other = open_clip(path, MediaRef(name, "video"), theirs, choice)
        assert other.times == clip.times
        for one, two in zip(clip.images, other.images, strict=True):
            # Decoders differ in how they turn YUV into RGB and in scaling; another frame would differ by more.
            assert np.abs(np.asarray(one).astype(int) - np.asarray(two)).mean() < 8
