"""Pictures lie in memory that a child writes to, and no picture in use is ever written over."""

from __future__ import annotations

import gc
import mmap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign.media import ledger, video
from mmalign.media.blocks import Block, Blocks, rounded
from mmalign.media.frames import FrameChoice
from mmalign.media.guard import Guard
from mmalign.media.ledger import Ledger
from mmalign.media.video import ClipLimits, open_clip
from mmalign.types import Clip, MediaRef
from tests.media.clips import Film, number_of

PAGE = mmap.ALLOCATIONGRANULARITY


class Pair:
    """A ledger, and the child's side of it in the same process."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.blocks = Blocks(self.ledger.descriptor)

    def clip(self, colours: list[int], width: int, height: int) -> list[Image.Image]:
        """Pictures of these levels of grey."""
        self.blocks.know(self.ledger.rows())
        block, memory = self.blocks.take(4 * width * height * len(colours))
        frames = memory.reshape(len(colours), height, width, 4)
        for frame, colour in zip(frames, colours, strict=True):
            frame[:] = colour
        return self.ledger.images(Block(*block), [(width, height)] * len(colours))


@given(st.integers(1, 2**40))
def test_sizes_of_blocks(size: int) -> None:
    assert rounded(size) % PAGE == 0
    assert size <= rounded(size) <= max(size + PAGE, size * 5 // 4)
    assert rounded(rounded(size)) == rounded(size)


def _is_as_it_was(colours: list[int], images: list[Image.Image]) -> bool:
    wanted = [("RGB", ((colour, colour),) * 3) for colour in colours]
    return [(image.mode, image.getextrema()) for image in images] == wanted


@settings(deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("open"), st.integers(1, 5), st.integers(1, 90), st.integers(1, 60)),
            st.tuples(st.just("close"), st.integers(0, 9), st.just(0), st.just(0)),
            st.tuples(st.just("thin out"), st.integers(0, 9), st.just(0), st.just(0)),
        ),
        max_size=30,
    ),
    kept=st.sampled_from([0, 8 * PAGE, 2**20]),
    most=st.sampled_from([0, 2, 64]),
)
def test_pictures_stay_as_they_are(steps: list[tuple[str, int, int, int]], kept: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "KEPT", kept)
        patch.setattr(ledger, "MOST", most)
        pair = Pair()
        open_clips: list[tuple[list[int], list[Image.Image]]] = []
        level = 0
        for what, num, width, height in steps:
            if what == "open":
                colours = [(level := (level + 1) % 256) for _ in range(num)]
                open_clips.append((colours, pair.clip(colours, width, height)))
            elif open_clips and what == "close":
                open_clips.pop(num % len(open_clips))
            elif open_clips:
                del open_clips[num % len(open_clips)][0][1:], open_clips[num % len(open_clips)][1][1:]
            assert all(_is_as_it_was(*clip) for clip in open_clips)
            rows = pair.ledger.rows()
            assert sum(size for _, size, is_free in rows if is_free) <= kept
            assert sum(not is_free for _, _, is_free in rows) <= min(most + 1, len(open_clips))
            ends = sorted((place, place + size) for place, size, _ in rows)
            assert all(end <= start for (_, end), (start, _) in pairwise(ends))
        open_clips.clear()
        assert not pair.ledger.is_used
        pair.ledger.close()


def test_pictures_outlive_the_ledger() -> None:
    pair = Pair()
    images = pair.clip([7, 8], 30, 20)
    pair.ledger.close()
    del pair
    gc.collect()
    assert [image.getpixel((29, 19)) for image in images] == [(7, 7, 7), (8, 8, 8)]


def test_a_picture_that_is_changed_is_copied_first() -> None:
    pair = Pair()
    one, other = pair.clip([7, 8], 30, 20)
    twin = one.copy()
    one.paste((1, 2, 3), (0, 0, 30, 20))
    twin.putpixel((0, 0), (4, 5, 6))
    assert other.getextrema() == ((8, 8),) * 3
    del one, twin
    assert pair.clip([9], 30, 20)[0].getextrema() == ((9, 9),) * 3
    assert other.getextrema() == ((8, 8),) * 3
    pair.ledger.close()


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    guard = Guard()
    monkeypatch.setattr(video, "GUARD", guard)
    return guard


def test_clips_share_memory_one_after_the_other(guard: Guard, tmp_path: Path) -> None:
    path = Film("a.mkv", "libx264").write(tmp_path)

    def opened(num: int) -> Clip:
        return open_clip(path, MediaRef(path.name, "video"), ClipLimits(), FrameChoice(num_frames=num))

    for _ in range(3):
        opened(40)
    (child,) = guard._idle
    assert len(child.ledger.rows()) == 1
    kept = opened(40).images[3]
    before = np.asarray(kept).copy()
    clips = [opened(num) for num in (40, 8, 40)]
    assert len(child.ledger.rows()) == 4
    assert (np.asarray(kept) == before).all()
    for clip in clips:
        assert clip.ref.frames is not None
        assert [number_of(image) for image in clip.images] == list(clip.ref.frames.numbers)
    guard.close()
    assert (np.asarray(kept) == before).all()
