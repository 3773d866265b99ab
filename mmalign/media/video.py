"""Open clips: chosen frames of a video file, upright RGB, within limits, decoded in a guarded process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

from mmalign.errors import MediaError, MMAlignError, RecipeError
from mmalign.media.files import check_file, file_sha256, is_pointer, is_text
from mmalign.media.frames import FrameChoice
from mmalign.media.guard import GUARD, Decoded
from mmalign.types import Clip, Frames, MediaRef, Row

Decoder = Literal["auto", "pyav", "decord", "torchcodec"]
DECODERS: Final = ("pyav", "decord", "torchcodec")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """What a clip may be, and how it is decoded.

    Args:
        max_seconds: Longer videos are refused.
        max_frames: Videos with more frames are refused; their index takes about 40 bytes a frame.
        max_pixels: Videos with more pixels in a frame are refused before one is decoded.
        max_side: Larger frames are scaled down to this many pixels on the longer side.
        max_bytes: Larger files are refused before they are read.
        min_side: Smaller frames are refused, as in pictures.
        max_ratio: Longer side over shorter side.
        decode_seconds: A decoder that takes longer for one clip is ended and the clip refused.
        decoder: Which library decodes; "auto" is PyAV, whose frames are the same everywhere.
    """

    max_seconds: float = 3600.0
    max_frames: int = 1_000_000
    max_pixels: int = 50_000_000
    max_side: int = 768
    max_bytes: int = 4 * 2**30
    min_side: int = 8
    max_ratio: float = 200.0
    decode_seconds: float = 120.0
    decoder: Decoder = "auto"

    def __post_init__(self) -> None:
        for name in ("max_frames", "max_pixels", "max_side", "max_bytes", "min_side", "max_ratio"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: got {getattr(self, name)}, must be at least 1")
        for name in ("max_seconds", "decode_seconds"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name}: got {getattr(self, name)}, must be more than 0")
        if self.decoder not in ("auto", *DECODERS):
            raise RecipeError(f"decoder: got {self.decoder!r}, known are auto, {', '.join(DECODERS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """What a video file says and shows: codec, size upright in pixels, frames, mean rate, length in seconds."""

    codec: str
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    num_bytes: int
    sha256: str


def interrupt_decoding() -> None:
    """End what is being decoded now; whoever waits for it gets MediaError at once."""
    GUARD.interrupt()


def open_clip(path: Path, ref: MediaRef, limits: ClipLimits, choice: FrameChoice, *, verify: bool = True) -> Clip:
    """Frames of a video file: those that `ref` records, where it does, else those that `choice` takes.

    Frames are numbered in the order in which they are shown. Those of a file whose end is cut off, or that lacks times,
    are numbered by decoding all of it once: only frames that decode count. The returned reference holds the SHA-256 of
    the file and the frames taken. Memory holds the chosen frames and an index, whatever the length of the video.

    Raises MediaError with the path as written in `ref` and the reason; also when `ref` knows another SHA-256 and
    `verify` is set, and for references with corruptions, which `mmalign.corrupt.reopen` opens. Raises RecipeError when
    the decoder that `limits` names does not load.
    """
    decoded, sha256 = _decoded(path, ref, limits, choice, verify=verify)
    head = decoded.head
    frames = Frames(tuple(head["numbers"]), tuple(head["times"]), head["fps"], head["total"], head["backend"])
    return Clip(tuple(decoded.frames), frames.times, replace(ref, sha256=sha256, frames=frames))


def inspect_clip(path: Path, name: str, limits: ClipLimits) -> ClipFacts:
    """Open a clip as `open_clip` does, its first and last frame decoded, and keep only the facts. Raises MediaError."""
    ends = FrameChoice(num_frames=2, at="ends")
    decoded, sha256 = _decoded(path, MediaRef(name, "video"), limits, ends, verify=False)
    head, (width, height) = decoded.head, decoded.frames[0].size
    # The frames are scaled and turned; a turn shows in which side is the longer one.
    is_turned = (width - height) * (head["width"] - head["height"]) < 0
    size = (head["height"], head["width"]) if is_turned else (head["width"], head["height"])
    return ClipFacts(
        codec=head["codec"],
        width=size[0],
        height=size[1],
        frames=head["total"],
        fps=head["fps"],
        seconds=head["duration"],
        num_bytes=path.stat().st_size,
        sha256=sha256,
    )


@cache
def why_not(decoder: str) -> str:
    """Why a decoder cannot be used here, found out by decoding a frame with it once per process; "" when it can."""
    try:
        GUARD.decode({"probe": decoder, "name": decoder, "seconds": 60.0})
    except MMAlignError as error:
        return str(error)
    return ""


def _decoded(
    path: Path, ref: MediaRef, limits: ClipLimits, choice: FrameChoice, *, verify: bool
) -> tuple[Decoded, str]:
    if ref.corruptions:
        raise MediaError(f"{ref.path}: names a damaged clip where an undamaged one belongs")
    if ref.kind != "video":
        raise MediaError(f"{ref.path}: is of the kind {ref.kind}, not a video")
    check_file(path, ref.path, limits.max_bytes)
    _check_start(path, ref.path)
    if limits.decoder not in ("auto", "pyav") and (reason := why_not(limits.decoder)):
        raise RecipeError(reason)
    sha256 = ""

    def hashed() -> None:
        nonlocal sha256
        sha256 = file_sha256(path)
        if verify and ref.sha256 and ref.sha256 != sha256:
            raise MediaError(f"{ref.path}: has changed since its SHA-256 was recorded; prepare the samples again")

    return GUARD.decode(_request(path, ref, limits, choice), hashed), sha256


def _request(path: Path, ref: MediaRef, limits: ClipLimits, choice: FrameChoice) -> Row:
    """What `mmalign.media.child` is asked."""
    keys = ("max_seconds", "max_frames", "max_pixels", "max_side", "min_side", "max_ratio")
    return {
        "path": str(path),
        "name": ref.path,
        "decoder": "pyav" if limits.decoder == "auto" else limits.decoder,
        "seconds": limits.decode_seconds,
        "choice": asdict(choice),
        "frames": ref.frames and ref.frames.to_row(),
        **{key: getattr(limits, key) for key in keys},
    }


def _check_start(path: Path, name: str) -> None:
    """Raise MediaError for what is known not to be a video by its first bytes."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        raise MediaError(f"{name}: cannot be read ({error.strerror})") from None
    if is_pointer(start):
        raise MediaError(f"{name}: is a Git LFS pointer without the video; run `git lfs pull`")
    if is_text(start):
        raise MediaError(f"{name}: holds text, not a video")
