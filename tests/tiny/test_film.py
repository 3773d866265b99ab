from pathlib import Path

import av
import numpy as np

from mmalign.tiny.clips import clips, frames
from mmalign.tiny.film import FPS, opened, write_film


def test_a_written_film_keeps_every_pixel_and_its_times(tmp_path: Path) -> None:
    for num, drawn in zip((8, 16, 1), clips(3, 0, "dev"), strict=True):
        write_film(drawn, num, tmp_path / "film.mkv")
        with av.open(tmp_path / "film.mkv") as film:
            read = list(film.decode(video=0))
        shown = opened(drawn, num, "film.mkv")
        assert tuple(frame.time for frame in read) == shown.times == tuple(at / FPS for at in range(num))
        for frame, drawn_frame, image in zip(read, frames(drawn, num), shown.images, strict=True):
            assert (frame.to_ndarray(format="rgb24") == drawn_frame).all()
            assert (np.asarray(image) == drawn_frame).all()


def test_equal_films_are_equal_files(tmp_path: Path) -> None:
    drawn = clips(1, 3, "dev")[0]
    for name in ("one.mkv", "two.mkv"):
        write_film(drawn, 8, tmp_path / name)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()
