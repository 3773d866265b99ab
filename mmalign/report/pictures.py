"""Small copies of pictures and frames as data URLs. Nothing of the original file but its pixels gets into the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from PIL import Image

from mmalign.corrupt import apply, reopen
from mmalign.errors import MediaError, MMAlignError
from mmalign.media.files import safe_path
from mmalign.media.read import MediaLimits
from mmalign.types import Media, MediaRef, Picture

#: Longest side of a thumbnail in pixels; the later, smaller ones are taken when all of them would be too many bytes.
SIDES: Final = (320, 224, 160, 96)
#: The same for the frames of clips, of which a page has many.
FRAME_SIDES: Final = (176, 128, 96, 64)
#: A picture up to this side stays as it is (PNG) and is shown enlarged with hard pixel edges.
TINY_SIDE: Final = 128
#: Data URLs of one page take at most this many bytes.
BUDGET: Final = 9_000_000


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture for the page: its data URL and the size to show it at. An empty `url` means a placeholder."""

    label: str
    url: str = ""
    width: int = 0
    height: int = 0
    is_tiny: bool = False


@dataclass(frozen=True, slots=True)
class _Kept:
    """A picture or a frame that waits to be encoded, or None where `label` says why there is none."""

    image: Image.Image | None
    label: str
    is_frame: bool = False


class Gallery:
    """The pictures of one page: ask for all of them with `add` and `add_frame`, then take `thumbnails`.

    Args:
        root: The folder that paths are relative to; it is never left.
        limits: Those of the run: corruptions depend on the size that a picture was scaled to.
    """

    def __init__(self, root: Path, limits: MediaLimits) -> None:
        self._root = root
        self._limits = limits
        self._kept: dict[str, _Kept] = {}
        self._uses: Counter[str] = Counter()
        self._latest: tuple[str, Media] | None = None

    def add(self, ref: MediaRef) -> str:
        """Load a picture, with the corruptions of its reference done again; returns the key of its thumbnail."""
        key = _key(ref)
        if key not in self._kept:
            self._kept[key] = self._load(ref)
        self._uses[key] += 1
        return key

    def add_frame(self, image: Image.Image, label: str) -> str:
        """Keep a frame of a clip; returns the key of its thumbnail, the same one for equal frames."""
        small = _shrunk(image, FRAME_SIDES[0])
        key = hashlib.sha256(repr(small.size).encode() + small.tobytes()).hexdigest()
        self._kept.setdefault(key, _Kept(small, label, is_frame=True))
        self._uses[key] += 1
        return key

    def open(self, ref: MediaRef) -> Media:
        """A picture or clip, with its corruptions. Raises MMAlignError."""
        if not safe_path(self._root, ref.path).is_file():
            raise MediaError(f"not found: {ref.path}")
        plain = replace(ref, corruptions=())
        # A damaged clip is asked for right after its source, and decoding takes most of the time.
        if self._latest is None or self._latest[0] != _key(plain):
            self._latest = (_key(plain), reopen(plain, self._root, self._limits))
        media = self._latest[1]
        for corruption in ref.corruptions:
            media = apply(media, corruption, self.open)
        return media

    def _load(self, ref: MediaRef) -> _Kept:
        try:
            picture = self.open(ref)
            if not isinstance(picture, Picture):
                return _Kept(None, f"A {ref.kind}, not shown here: {ref.path}")
            return _Kept(_shrunk(picture.image, SIDES[0]), ref.path)
        except MMAlignError as error:
            return _Kept(None, said_missing("Picture", error))

    def thumbnails(self, budget: int = BUDGET) -> Mapping[str, Thumbnail]:
        """All thumbnails by key, as large as their number allows within `budget` bytes; each counts once per use."""
        made: dict[str, Thumbnail] = {}
        for level in range(len(SIDES)):
            made = {}
            left = budget
            for key, kept in self._kept.items():
                made[key] = _encode(kept, level)
                left -= len(made[key].url) * self._uses[key]
                if left < 0 and level + 1 < len(SIDES):
                    break
            else:
                break
        return made


def said_missing(what: str, error: MMAlignError) -> str:
    """The line of a placeholder: 'Picture not found: a.png', 'Clip cannot be shown: a.mp4: ...'."""
    reason = str(error)
    return f"{what} {reason}" if reason.startswith("not found: ") else f"{what} cannot be shown: {reason}"


def _key(ref: MediaRef) -> str:
    return repr(ref.to_row())


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _encode(kept: _Kept, level: int) -> Thumbnail:
    """The thumbnail at a level of `SIDES`; tiny pictures keep their pixels at every level, tiny frames at the first."""
    if kept.image is None:
        return Thumbnail(kept.label)
    side = (FRAME_SIDES if kept.is_frame else SIDES)[level]
    is_tiny = max(kept.image.size) <= TINY_SIDE
    is_whole = is_tiny and not (kept.is_frame and level)
    small = kept.image if is_whole else _shrunk(kept.image, side)
    data = io.BytesIO()
    if is_whole:
        small.save(data, "PNG", optimize=True)
    else:
        small.save(data, "WEBP", quality=78, method=4)
    url = f"data:image/{'png' if is_whole else 'webp'};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    scale = max(1, 256 // max(small.size)) if is_tiny else 1
    return Thumbnail(kept.label, url, small.width * scale, small.height * scale, is_tiny)
