"""A run that breaks off does not wait for what decoders are doing."""

from concurrent.futures import Future
from pathlib import Path

import pytest

from mmalign.engine.task import openers
from mmalign.errors import Interrupted
from mmalign.media import video
from mmalign.media.frames import FrameChoice
from mmalign.media.guard import Guard
from mmalign.media.video import ClipLimits, open_clip
from mmalign.types import Clip, MediaRef
from tests.media.clips import Film


def test_an_interrupted_run_leaves_a_hanging_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard("tests.media.fake_child")
    monkeypatch.setattr(video, "GUARD", guard)
    film = Film("a.mkv", "libx264").write(tmp_path).rename(tmp_path / "hangs in C.mkv")
    limits, ref = ClipLimits(decode_seconds=900), MediaRef(film.name, "video")
    opening: list[Future[Clip]] = []

    def broken_off() -> None:
        with openers() as pool:
            opening.append(pool.submit(open_clip, film, ref, limits, FrameChoice(num_frames=40)))
            while not guard._busy:
                assert not opening[0].done()
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        broken_off()
    assert opening[0].done()
    assert not guard._busy
    guard.close()
