"""The child process that decodes: reads requests, answers with an index and frames, and dies with its parent.

A request is one line of JSON on stdin (`mmalign.media.guard`). The answer is one line of JSON on what was stdout: the
facts, numbers, times and sizes of the frames (a picture is one), and the block of shared memory in which the pixels lie
(`mmalign.media.blocks`); or `error` with the reason why there are none, `absent` when a decoder does not load, `bug`
for an error that nobody meant.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from mmalign.errors import MediaError
from mmalign.media.blocks import Blocks
from mmalign.media.decode import PictureLimits, decode_picture
from mmalign.media.decoders.source import Backend, CannotGiveError, Source
from mmalign.media.files import read_file
from mmalign.media.frames import FrameChoice, chosen
from mmalign.media.index import Index, UnsureIndexError, counted, line, opened, scan
from mmalign.types import Row

#: Seconds after the parent's own time limit at which a child whose parent has died ends itself.
GRACE: Final = 5.0

#: Bytes that a decoder may take. A picture at the default limits takes less than half of them.
MAX_MEMORY: Final = 4 * 2**30

#: Bytes that the frames of one clip may take, scaled as they are given out.
MAX_FRAMES_BYTES: Final = 2 * 2**30


def _packaged(name: str) -> Callable[[], Backend]:
    return lambda: import_module(f"mmalign.media.decoders.{name}").frames


#: What loads a backend, by its name.
BACKENDS: Final = {name: _packaged(name) for name in ("pyav", "decord", "torchcodec")}


def main() -> None:
    """Answer requests until stdin ends. The argument is the descriptor of the memory shared with the parent."""
    blocks = Blocks(int(sys.argv[1]))
    # Signals that stop a run go to all of its processes; the parent says when a child's work is over.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _bound_memory()
    answers = os.fdopen(os.dup(1), "wb", closefd=False)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries that print must not do it between the answers
    for request in sys.stdin.buffer:
        row = json.loads(request)
        # A watch in C, which goes off even while a decoder holds the interpreter.
        faulthandler.dump_traceback_later(row["seconds"] + GRACE, exit=True, file=nowhere)
        try:
            if "probe" in row:
                _probe(row["probe"])
                answer: Row = {}
            else:
                blocks.know(row["blocks"])
                answer = (_picture if "picture" in row else _decode)(row, blocks)
        except MediaError as error:
            answer = {"error": str(error)}
        except _AbsentError as error:
            answer = {"absent": str(error)}
        except Exception as error:
            answer = {"bug": f"{type(error).__name__}: {line(error)}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        faulthandler.cancel_dump_traceback_later()


def _picture(row: Row, blocks: Blocks) -> Row:
    """The answer with a picture, or its facts alone. Raises MediaError."""
    name, limits = row["name"], PictureLimits(**row["picture"])
    content = read_file(Path(row["path"]), name, limits.max_bytes)
    if row["sha256"] and hashlib.sha256(content).hexdigest() != row["sha256"]:
        raise MediaError(f"{name}: has changed since its SHA-256 was recorded; prepare the samples again")
    image, facts = decode_picture(content, name, limits)
    if not row["pixels"]:
        return {"head": asdict(facts)}
    width, height = image.size
    block, memory = blocks.take(4 * width * height)
    memory.reshape(height, width, 4)[:, :, :3] = np.asarray(image)
    return {"head": asdict(facts), "block": block, "sizes": [(width, height)]}


def _bound_memory() -> None:
    """From here on the system refuses this process more memory of its own than `MAX_MEMORY`; shared memory is apart."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY if hard < 0 else min(MAX_MEMORY, hard), hard))


class _AbsentError(Exception):
    """A backend is not installed or does not load."""


def _laid(blocks: Blocks, name: str, source: Source, numbers: Sequence[int], backend: Backend) -> Row:
    """The answer for these frames, which are laid into a block. Raises what the backend raises."""
    index, (width, height) = source.index, source.size
    if 4 * width * height * len(numbers) > MAX_FRAMES_BYTES:
        raise MediaError(
            f"{source.path.name}: {len(numbers)} frames of {width}x{height} pixels take more than {MAX_FRAMES_BYTES} "
            "bytes; take fewer or smaller ones"
        )
    block, memory = blocks.take(4 * width * height * len(numbers))
    places = memory.reshape(len(numbers), height, width, 4)
    sizes = []
    for place, pixels in zip(places, backend(source, numbers), strict=True):
        rows, columns, depth = pixels.shape
        place.reshape(rows, columns, 4)[:, :, :depth] = pixels
        sizes.append((columns, rows))
    head = {
        "codec": index.codec,
        "total": index.total,
        "fps": index.fps,
        "duration": index.duration,
        "numbers": list(numbers),
        "times": [index.times[number] for number in numbers],
        "width": index.width,
        "height": index.height,
        "backend": name,
    }
    return {"head": head, "block": block, "sizes": sizes}


def _decode(row: Row, blocks: Blocks) -> Row:
    """The answer with the frames that a request asks for. Raises MediaError.

    Frames are numbered by the file's packets. Where these do not tell the frames, or one of the frames that were chosen
    does not decode after all, they are numbered anew by decoding everything once, and only those that decode count.
    """
    path, name, backend = Path(row["path"]), row["name"], row["decoder"]
    give = _loaded(backend)
    try:
        with opened(path, name, row["max_pixels"]) as (container, stream):
            size = _target(stream.codec_context.width, stream.codec_context.height, row)
            index = scan(container, stream, name, row["max_frames"], row["max_seconds"])
            numbers = _numbers(index, row)
            if numbers is not None:
                source = Source(path, index, False, size, container, stream)
                return _laid(blocks, backend, source, numbers, give)
    except UnsureIndexError:
        pass
    except CannotGiveError as error:
        if backend != "pyav":
            raise MediaError(f"{name}: {error}; data.decoder: auto takes PyAV") from None
    return _decode_counted(row, blocks)


def _decode_counted(row: Row, blocks: Blocks) -> Row:
    path, name = Path(row["path"]), row["name"]
    if row["decoder"] != "pyav":
        raise MediaError(
            f"{name}: its frames must be counted by decoding, which {row['decoder']} is not asked to do; "
            "data.decoder: auto takes PyAV"
        )
    with opened(path, name, row["max_pixels"]) as (container, stream):
        size = _target(stream.codec_context.width, stream.codec_context.height, row)
        index = counted(container, stream, name, row["max_frames"], row["max_seconds"])
    numbers = _numbers(index, row)
    if numbers is None:
        raise MediaError(f"{name}: does not hold the frames that were recorded; prepare the samples again")
    with opened(path, name, row["max_pixels"]) as (container, stream):
        try:
            return _laid(blocks, "pyav", Source(path, index, True, size, container, stream), numbers, _loaded("pyav"))
        except CannotGiveError as error:
            raise MediaError(f"{name}: decodes differently each time ({error}); convert it anew") from None


def _numbers(index: Index, row: Row) -> list[int] | None:
    """The frames to take: those that were taken before, if the index knows them, else by choice."""
    before = row["frames"]
    if before is None:
        try:
            return chosen(index.times, index.duration, FrameChoice(**row["choice"]))
        except MediaError as error:
            raise MediaError(f"{row['name']}: {error}") from None
    numbers: list[int] = before["numbers"]
    fits = index.total == before["total"] and max(numbers) < index.total
    return numbers if fits and [index.times[number] for number in numbers] == before["times"] else None


def _target(width: int, height: int, row: Row) -> tuple[int, int]:
    """The size that frames are scaled to. Raises MediaError for a size that is refused."""
    name = row["name"]
    if width == 0 or height == 0:
        raise MediaError(
            f"{name}: the size of its frames is unknown; its header is damaged, or the size is over the limit of "
            f"{row['max_pixels']} pixels (max_pixels)"
        )
    if width * height > row["max_pixels"]:
        raise MediaError(
            f"{name}: has frames of {width}x{height} pixels, over the limit of {row['max_pixels']} pixels (max_pixels)"
        )
    if min(width, height) < row["min_side"]:
        raise MediaError(f"{name}: has frames of {width}x{height} pixels; each side needs at least {row['min_side']}")
    if max(width, height) > row["max_ratio"] * min(width, height):
        raise MediaError(
            f"{name}: has frames of {width}x{height} pixels; the longer side may be at most {row['max_ratio']:g} times "
            "the shorter"
        )
    scale = min(1.0, row["max_side"] / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _loaded(backend: str) -> Backend:
    try:
        return BACKENDS[backend]()
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another torch or FFmpeg fails with any of these
        raise _AbsentError(f"{backend} does not load ({line(error)})") from None


def _probe(backend: str) -> None:
    """Decode one frame of a clip made here."""
    give = _loaded(backend)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.mp4")
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(4):
                output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            output.mux(stream.encode(None))
        with opened(path, "probe", 64 * 48) as (container, stream):
            index = scan(container, stream, "probe", 100, 100)
            try:
                found = list(give(Source(path, index, False, (64, 48), container, stream), [2]))
            except CannotGiveError as error:
                raise _AbsentError(f"{backend} loads, but does not decode ({error})") from None
    if [pixels.shape[:2] for pixels in found] != [(48, 64)]:
        raise _AbsentError(f"{backend} loads, but gives back {[pixels.shape for pixels in found]}")
