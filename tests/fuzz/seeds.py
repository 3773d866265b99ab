"""Good files that damage is done to: drawn here, and photographs and clips of other makers where they lie beside."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.media.clips import Film
from tests.media.hostile import encoded, good_files, quarters

#: Real media, which a checkout need not have.
SHARED = Path(__file__).resolve().parents[3] / "shared" / "media"

#: Larger real files would make the damage rare in what is read of them.
MAX_BYTES = 150_000

#: Short clips of the containers that people have.
_FILMS = (
    Film("a.mp4", "libx264", num=12, options={"bf": "2", "g": "6"}, sound=True),
    Film("front.mp4", "mpeg4", num=12, container={"movflags": "faststart"}),
    Film("a.mkv", "libx264", num=12, options={"g": "6"}),
    Film("a.webm", "libvpx", num=12, options={"deadline": "realtime", "cpu-used": "8"}),
    Film("nine.webm", "libvpx-vp9", num=8, options={"deadline": "realtime", "cpu-used": "8"}),
    Film("a.avi", "mpeg4", num=12),
    Film("a.mov", "mpeg4", num=12, rotation=90),
    Film("a.ogv", "libvpx", num=12, options={"deadline": "realtime", "cpu-used": "8"}),
    Film("a.ts", "mpeg2video", num=12),
    Film("a.gif", "gif", num=6, pixels="rgb8"),
)


def _real(folder: Path, num: int) -> dict[str, bytes]:
    """A few of the smaller files below a folder, evenly over their names."""
    suffixes = (".jpg", ".png", ".gif", ".mkv", ".mp4", ".webm")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    found = [path for path in found if path.stat().st_size <= MAX_BYTES]
    return {f"real {path.name}": path.read_bytes() for path in found[:: max(1, len(found) // num)]}


@cache
def pictures() -> dict[str, bytes]:
    """Files by name."""
    drawn = {name.replace("/", "-"): content for name, content in good_files().items() if len(content) <= MAX_BYTES}
    return drawn | {"texts.png": _with_texts(), "pages.tif": _pages()} | _real(SHARED / "images", 12)


@cache
def clips(folder: Path) -> dict[str, bytes]:
    """Files by name; they are written into `folder` first."""
    return {film.name: exact(film).write(folder).read_bytes() for film in _FILMS} | _real(SHARED / "videos", 6)


def exact(film: Film) -> Film:
    """The same film whose file has nothing in it that differs from day to day."""
    # x264's macroblock tree does not always weigh the same blocks alike, even with one thread.
    options = {**film.options, "x264-params": "no-mbtree=1"} if film.codec == "libx264" else film.options
    return replace(film, options=options, container={**film.container, "fflags": "bitexact"})


def _with_texts() -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "words " * 200, zip=True)
    texts.add_itxt("Title", "títle", lang="es", zip=True)
    return encoded(quarters(), "PNG", pnginfo=texts, icc_profile=bytes(500))


def _pages() -> bytes:
    stream = BytesIO()
    noise = np.random.RandomState(1).randint(0, 256, (40, 60, 3), np.uint8)
    pages = [quarters(shade=shade) for shade in (10, 20)] + [Image.fromarray(noise)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    return stream.getvalue()
