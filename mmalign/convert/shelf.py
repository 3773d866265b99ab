"""Where the media of pairs lie, and how they get into a conversion.

Names of media are paths relative to a data folder that they cannot leave. A conversion names the files as they are, or
takes copies along; damaged pictures and frames of clips are no files yet, and are drawn where copies are made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import Image

from mmalign.convert.seen import Medium, Unfit
from mmalign.corrupt import reopen
from mmalign.errors import MediaError, RecipeError
from mmalign.media.files import file_sha256, safe_path
from mmalign.media.read import MediaLimits
from mmalign.types import Clip, Media, MediaRef, Row

#: Folders of what is drawn, in OUT.
DAMAGED, FRAMES = "damaged", "frames"


@dataclass(frozen=True)
class Shelf:
    """The data folder `root` of a source, and what is done with what lies there.

    `copies`: media become files of the conversion, and damaged pictures are drawn. `frames`: clips become pictures.
    `held` are media that came as bytes, by name.
    """

    root: Path
    copies: bool = False
    frames: bool = False
    held: Mapping[str, bytes] = field(default_factory=dict)
    limits: MediaLimits = field(default_factory=MediaLimits)

    def media_of(self, part: Row) -> list[Medium]:
        """The media that other tools see of a part of a context. Raises Unfit where they cannot."""
        name, kind = part["path"], part["type"]
        if not self.has(name):
            raise Unfit(f"{name}: no such file below {self.root}; name the folder of the media with --media-root")
        if kind == "video" and self.frames:
            return self._frames_of(part)
        if not part.get("corruptions"):
            return [Medium(kind, name, content=self.held.get(name), part=part)]
        damage = part["corruptions"][0].get("name")
        if kind == "video":
            raise Unfit(f"{name}: is shown damaged ({damage}), which is no file that another tool could read")
        if not self.copies:
            raise Unfit(f"{name}: is shown damaged ({damage}), which is no file yet; --copy-media draws it")
        return [Medium("image", f"{DAMAGED}/{_key(part)}.png", part=part)]

    def _frames_of(self, part: Row) -> list[Medium]:
        recorded = part.get("frames")
        if not recorded:
            raise Unfit(f"{part['path']}: its pair does not say which frames of the clip are shown")
        count = len(recorded["numbers"])
        for corruption in part.get("corruptions", ()):
            count = len(corruption["params"].get("frames", range(count)))
        return [Medium("image", f"{FRAMES}/{_key(part)}-{n:03d}.png", part=part, frame=n) for n in range(count)]

    def path_of(self, name: str) -> Path:
        """The file of a name. Raises Unfit for one that would leave the data folder."""
        try:
            return safe_path(self.root, name)
        except MediaError as error:
            raise Unfit(str(error)) from None

    @cached_property
    def _top(self) -> str:
        return os.path.realpath(self.root)

    def inward(self, path: str) -> str:
        """A foreign path as a name below the data folder. Raises Unfit for one that lies elsewhere."""
        if Path(path).is_absolute() and "\0" not in path and os.path.realpath(path).startswith(self._top + os.sep):
            path = os.path.relpath(os.path.realpath(path), self._top)
        self.path_of(path)
        return path

    def has(self, name: str) -> bool:
        """Whether there is a file of this name. Raises Unfit for one that would leave the data folder."""
        path = self.path_of(name)
        try:
            return name in self.held or path.is_file()
        except OSError:  # a name that is too long
            return False

    def content_of(self, medium: Medium) -> bytes:
        """The bytes of a medium. Raises Unfit where they cannot be had, or are not those that the pair is about."""
        part = medium.part
        if medium.content is not None:
            return medium.content
        if part is None or medium.name == part["path"]:
            return self._checked(medium).read_bytes()
        return self._drawn(part, medium.frame or 0)

    def _drawn(self, part: Row, frame: int) -> bytes:
        try:
            media = _reopened(json.dumps(part, sort_keys=True), self.root, self.limits)
        except (MediaError, RecipeError) as error:
            raise Unfit(str(error)) from None
        except (LookupError, TypeError, ValueError) as error:
            raise Unfit(f"{part['path']}: what is on record of it cannot be done again ({error!r:.120})") from None
        if isinstance(media, Clip) and frame >= len(media.images):
            raise Unfit(f"{part['path']}: shows {len(media.images)} frames, not those on record")
        return _png(media.images[frame] if isinstance(media, Clip) else media.image)

    def _checked(self, medium: Medium) -> Path:
        path = self.path_of(medium.name)
        _refuse_other(path, medium)
        try:
            path.open("rb").close()  # later a failure would be taken for one of the output
        except OSError as error:
            raise Unfit(f"{medium.name}: cannot be read ({error.strerror})") from None
        return path

    def copy(self, medium: Medium, folder: Path) -> None:
        """Put a medium into `folder` under its name, unless it is there. Raises Unfit."""
        self.path_of(medium.name)  # which must not leave `folder` either
        target = folder / medium.name
        is_as_it_was = medium.part is None or medium.name == medium.part["path"]
        if target.exists():
            if is_as_it_was:
                _refuse_other(target, medium)
            return
        if medium.content is None and is_as_it_was:
            source = self._checked(medium)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)  # a clip may be too large for the memory
        else:
            content = self.content_of(medium)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _refuse_other(path: Path, medium: Medium) -> None:
    """Raises Unfit where a file is not the one that the pair was made about."""
    expected = (medium.part or {}).get("sha256")
    try:
        status = path.stat()
        if expected and _sha256(path, status.st_ino, status.st_mtime_ns, status.st_size) != expected:
            raise Unfit(f"{medium.name}: the file has changed since the pair was made (another SHA-256)")
    except MediaError as error:
        raise Unfit(str(error)) from None
    except OSError as error:
        raise Unfit(f"{medium.name}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=64)
def _sha256(path: Path, *state: int) -> str:
    """Many pairs in a row are about one file, which is read once as long as its `state` is the same."""
    return file_sha256(path)


@lru_cache(maxsize=2)
def _reopened(part: str, root: Path, limits: MediaLimits) -> Media:
    """The medium of a part; a clip is decoded once for all of its frames."""
    return reopen(MediaRef.from_row(json.loads(part)), root, limits)


def _key(part: Row) -> str:
    """The same for the same picture, however often it is shown."""
    told = json.dumps(part, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
