"""Our `open_clip` beside each decoder's own best call, for evenly spread frames of short and long videos.

All take the same frames at the same size. Their best calls end with RGB in arrays and do nothing else: PyAV decodes in
order with all threads and converts the wanted frames (`pyav`), or seeks to the key frame before each of them
(`pyav seek`), with one converter for all frames and one thread for it, and arrays that are views of PyAV's own frames;
decord's `get_batch` and torchcodec's `get_frames_at` take the numbers. Ours ends with Pillow pictures, and also hashes
the file, checks limits, finds the frames' times and decodes in a guarded process.

Frames are let go before the next call, so that all may use memory again: the others what their libraries and malloc
keep, ours the block that the clip before lay in. A clip that is opened while others are still in use needs memory that
is touched for the first time; 118 MB of it, 128 of these frames, take about as long as decoding them.

All calls take turns in one run, so that other work on the machine hits them alike, and the least of each is compared,
of time and of processor time. The latter counts all threads and the guarded process, and is the one to read on a
machine that is never at rest. It does not show what the guarded process can do beside this one.

    python -m benchmarks.decode                     # generated videos
    python -m benchmarks.decode --folder DIR        # your own

Goal: the fastest other call takes at least 0.95 of our time (ratio >= 0.95).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmalign.errors import MediaError
from mmalign.media.frames import FrameChoice
from mmalign.media.video import GUARD, ClipLimits, open_clip, why_not
from mmalign.types import MediaRef

LIMITS = ClipLimits(max_side=4096)
COUNTS = (8, 32, 128)

#: Name, codec, seconds, width, height, options. One key frame in 250 is x264's own default.
VIDEOS = (
    ("short h264", "libx264", 5, 640, 360, {"preset": "fast"}),
    ("short hevc", "libx265", 5, 640, 360, {"preset": "ultrafast", "x265-params": "log-level=none"}),
    ("short vp9", "libvpx-vp9", 5, 640, 360, {"deadline": "realtime", "cpu-used": "8"}),
    ("long h264", "libx264", 60, 640, 360, {"preset": "veryfast"}),
    ("long h264, key frames", "libx264", 60, 640, 360, {"preset": "veryfast", "g": "30"}),
)


def write(path: Path, codec: str, seconds: int, width: int, height: int, options: dict[str, str]) -> None:
    """A textured picture that pans, with noise, at 30 frames per second."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(30 * seconds):
            top, left = number % 256, (2 * number) % 512
            pixels = np.ascontiguousarray(texture[top : top + height, left : left + width])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def pyav_in_order(path: Path, numbers: Sequence[int]) -> int:
    wanted, found, reformatter = set(numbers), [], VideoReformatter()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
                if len(found) == len(numbers):
                    break
    return len(found)


def pyav_seeking(path: Path, times: Sequence[float]) -> int:
    found, reformatter = [], VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for moment in times:
            container.seek(round((moment + 1e-4) / float(stream.time_base)) + (stream.start_time or 0), stream=stream)
            for frame in container.decode(stream):
                if frame.time - float((stream.start_time or 0) * stream.time_base) >= moment - 1e-3:
                    found.append(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
                    break
    return len(found)


def decord_batch(path: Path, numbers: Sequence[int]) -> int:
    import decord

    return len(decord.VideoReader(str(path), ctx=decord.cpu(0)).get_batch(list(numbers)).asnumpy())


def torchcodec_batch(path: Path, numbers: Sequence[int]) -> int:
    from torchcodec.decoders import VideoDecoder

    return len(VideoDecoder(str(path), num_ffmpeg_threads=0).get_frames_at(list(numbers)).data)


def others(path: Path, numbers: Sequence[int], times: Sequence[float]) -> dict[str, Callable[[], int]]:
    """The calls that really work on this file here."""
    calls: dict[str, Callable[[], int]] = {
        "pyav": lambda: pyav_in_order(path, numbers),
        "pyav seek": lambda: pyav_seeking(path, times),
    }
    if not why_not("decord"):
        calls["decord"] = lambda: decord_batch(path, numbers)
    if not why_not("torchcodec"):
        calls["torchcodec"] = lambda: torchcodec_batch(path, numbers)
    first: dict[str, float] = {}
    for name, call in calls.items():
        began = time.perf_counter()
        try:
            num = call()
        except Exception as error:
            print(f"{path.name}: {name} cannot: {str(error).splitlines()[0][:80]}", file=sys.stderr)
            continue
        if num == len(numbers):
            first[name] = time.perf_counter() - began
    # What is far behind the fastest is left alone.
    return {name: calls[name] for name, spent in first.items() if spent <= 4 * min(first.values())}


def processor_time() -> float:
    """Seconds that all threads of this process and of its decoding children, ended ones too, have computed."""
    # How Linux names the clock of another process: clock_getcpuclockid(3).
    clocks = (~child._process.pid << 3 | 2 for child in GUARD._idle)
    return time.process_time() + sum(time.clock_gettime(clock) for clock in clocks)


def measure(path: Path, num: int, repeats: int) -> tuple[dict[str, float], dict[str, float], int]:
    """Least seconds and least processor seconds of every call, ours among them, and how many frames were taken."""
    ref, choice = MediaRef(path.name, "video"), FrameChoice(num_frames=num)
    first = open_clip(path, ref, LIMITS, choice)
    frames = first.ref.frames
    assert frames is not None
    calls = {"ours": lambda: len(open_clip(path, ref, LIMITS, choice).images)}
    calls |= others(path, frames.numbers, frames.times)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    worked: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began, before = time.perf_counter(), processor_time()
            call()
            spent[name].append(time.perf_counter() - began)
            worked[name].append(processor_time() - before)
    least = [{name: min(values) for name, values in times.items()} for times in (spent, worked)]
    return least[0], least[1], len(frames.numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="videos of your own instead of generated ones")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.folder:
            paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
        else:
            paths = []
            for name, codec, *rest in VIDEOS:
                paths.append(Path(scratch, f"{name}.mp4"))
                write(paths[-1], codec, *rest)
        names = ("ours", "pyav", "pyav seek", "decord", "torchcodec")
        print("video | frames | " + " | ".join(f"{name} ms" for name in names) + " | ratio | ratio of processor time")
        worst = float("inf")
        for path in paths:
            for num in COUNTS:
                try:
                    spent, worked, taken = measure(path, num, options.repeats)
                except MediaError as error:
                    print(error, file=sys.stderr)
                    break
                ratio, work = (
                    min(value for name, value in times.items() if name != "ours") / times["ours"]
                    for times in (spent, worked)
                )
                worst = min(worst, ratio)
                cells = [f"{1000 * spent[name]:.0f}" if name in spent else "-" for name in names]
                print(f"{path.stem} | {taken} | " + " | ".join(cells) + f" | {ratio:.2f} | {work:.2f}", flush=True)
    print(f"worst ratio {worst:.2f}")


if __name__ == "__main__":
    main()
