"""Small copies of pictures as data URLs. Nothing of the original file but its pixels gets into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from mmalign.corrupt import reopen
from mmalign.errors import MMAlignError
from mmalign.media.image import PictureLimits, safe_path
from mmalign.types import Corruption, MediaRef

#: Longest side of a thumbnail in pixels; the later, smaller ones are taken when all of them would be too many bytes.
SIDES: Final = (320, 224, 160, 96)
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


class Gallery:
    """The pictures of one page: ask for all of them with `add`, then take `thumbnails`.

    Args:
        root: The folder that paths are relative to; it is never left.
        limits: Those of the run: corruptions depend on the size that a picture was scaled to.
    """

    def __init__(self, root: Path, limits: PictureLimits) -> None:
        self._root = root
        self._limits = limits
        self._images: dict[str, tuple[Image.Image | None, str]] = {}

    def add(self, ref: MediaRef) -> str:
        """Load a picture, with the corruptions of its reference done again; returns the key of its thumbnail."""
        key = repr((ref.path, ref.sha256, [corruption.to_row() for corruption in ref.corruptions]))
        if key not in self._images:
            self._images[key] = self._load(ref)
        return key

    def _load(self, ref: MediaRef) -> tuple[Image.Image | None, str]:
        if ref.kind != "image":
            return None, f"A {ref.kind}, not shown here: {ref.path}"
        try:
            if not safe_path(self._root, ref.path).is_file():
                return None, f"Picture not found: {ref.path}"
            return _shrunk(reopen(ref, self._root, self._limits).image, SIDES[0]), ref.path
        except MMAlignError as error:
            return None, f"Picture cannot be shown: {error}"

    def thumbnails(self, budget: int = BUDGET) -> Mapping[str, Thumbnail]:
        """All thumbnails by key, as large as their number allows within `budget` bytes."""
        made: dict[str, Thumbnail] = {}
        for side in SIDES:
            made = {key: _encode(image, label, side) for key, (image, label) in self._images.items()}
            if sum(len(thumbnail.url) for thumbnail in made.values()) <= budget:
                break
        return made


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _encode(image: Image.Image | None, label: str, side: int) -> Thumbnail:
    if image is None:
        return Thumbnail(label)
    is_tiny = max(image.size) <= TINY_SIDE
    small = image if is_tiny else _shrunk(image, side)
    data = io.BytesIO()
    if is_tiny:
        small.save(data, "PNG", optimize=True)
    else:
        small.save(data, "WEBP", quality=78, method=4)
    url = f"data:image/{'png' if is_tiny else 'webp'};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    scale = max(1, 256 // max(small.size)) if is_tiny else 1
    return Thumbnail(label, url, small.width * scale, small.height * scale, is_tiny)


def damages(value: object) -> list[tuple[Corruption, ...]]:
    """The corruptions recorded anywhere in a provenance value; those that stand in one list were done in a row."""
    if isinstance(value, Mapping):
        if (found := _corruption(value)) is not None:
            return [(found,)]
        return [chain for part in value.values() for chain in damages(part)]
    if isinstance(value, list | tuple):
        chain = tuple(found for part in value if (found := _corruption(part)) is not None)
        if chain:
            return [chain]
        return [chain for part in value for chain in damages(part)]
    return []


def _corruption(value: object) -> Corruption | None:
    if isinstance(value, Mapping) and set(value) == {"name", "params"} and isinstance(value["params"], Mapping):
        return Corruption(str(value["name"]), value["params"])
    return None


def in_words(corruption: Corruption) -> str:
    """'gaussian noise (seed 5, sigma 0.3)'."""
    params = ", ".join(f"{key} {_short(value)}" for key, value in corruption.params.items())
    return corruption.name.replace("_", " ") + (f" ({params})" if params else "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
