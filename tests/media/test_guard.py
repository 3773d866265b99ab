"""A decoder that hangs or crashes costs its clip and nothing else; children come and go with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmalign.errors import MediaError, RecipeError
from mmalign.media import video
from mmalign.media.frames import FrameChoice
from mmalign.media.guard import Guard
from mmalign.media.video import ClipLimits, open_clip, why_not
from mmalign.types import Clip, MediaRef
from tests.media.clips import Film, number_of

CHOICE = FrameChoice(num_frames=40)
LATE = "was not decoded within 1.5 seconds; it is damaged, or takes longer than data.decode_seconds allows"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Film("a.mkv", "libx264").write(tmp_path_factory.mktemp("guard")).read_bytes()


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    guard = Guard("tests.media.fake_child")
    monkeypatch.setattr(video, "GUARD", guard)
    return guard


def opened(path: Path, seconds: float = 60.0) -> Clip:
    return open_clip(path, MediaRef(path.name, "video"), ClipLimits(decode_seconds=seconds), CHOICE)


def numbers(clip: Clip) -> list[int]:
    return [number_of(image) for image in clip.images]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs in Python", LATE),
        ("hangs in C", LATE),
        ("crashes", "its decoder crashed (SIGSEGV); it may be damaged"),
        ("ends", "its decoder crashed (exit status 3); it may be damaged"),
        ("raises", "its decoder failed (KeyError: 'nobody\\nmeant this')"),
        ("refuses", "is refused late"),
    ],
)
def test_a_bad_decoder_costs_its_clip(name: str, reason: str, guard: Guard, content: bytes, tmp_path: Path) -> None:
    bad, good = tmp_path / f"{name}.mkv", tmp_path / "good.mkv"
    bad.write_bytes(content)
    good.write_bytes(content)
    # A hang must be ended, and a start of Python on a busy machine must not count as one.
    assert numbers(opened(good)) == numbers(opened(good))
    with pytest.raises(MediaError) as caught:
        opened(bad, 1.5 if "hangs" in name else 60.0)
    assert str(caught.value) in (f"{bad.name}: {reason}", f"{name}: {reason}")
    assert "\n" not in str(caught.value)
    clip = opened(good)
    assert numbers(clip) == list(clip.ref.frames.numbers)  # type: ignore[union-attr]
    guard.close()


def test_what_libraries_print_does_no_harm(guard: Guard, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prints.mkv"
    path.write_bytes(content)
    assert len(opened(path).images) == 40
    guard.close()


def test_a_child_that_died_while_idle_is_replaced(guard: Guard, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.mkv"
    path.write_bytes(content)
    first = numbers(opened(path))
    (child,) = guard._idle
    child._process.kill()
    child._process.wait()
    assert numbers(opened(path)) == first
    guard.close()


def test_threads_get_their_own_children(guard: Guard, content: bytes, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.mkv" for index in range(12)]
    for path in paths:
        path.write_bytes(content)
    with ThreadPoolExecutor(3) as pool:
        clips = list(pool.map(opened, paths))
    assert [clip.ref.path for clip in clips] == [path.name for path in paths]
    assert all(numbers(clip) == list(clip.ref.frames.numbers) for clip in clips)  # type: ignore[union-attr]
    assert 1 <= len(guard._idle) <= 3
    guard.close()
    assert not guard._idle


def test_what_is_raised_meanwhile_ends_the_request(guard: Guard, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hangs in C.mkv"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(MediaError, match="has changed"):
        open_clip(path, MediaRef(path.name, "video", "0" * 64), ClipLimits(decode_seconds=500), CHOICE)
    assert time.monotonic() - began < 100
    assert not guard._idle
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(60)  # called off, it ends by itself; its time would be over much later
        assert not timer.is_alive()


def test_a_decoder_that_is_not_there_is_a_mistake_in_the_recipe(content: bytes, tmp_path: Path) -> None:
    reason = why_not("torchcodec")
    if not reason:
        pytest.skip("torchcodec works here")
    path = tmp_path / "good.mkv"
    path.write_bytes(content)
    assert reason.startswith("data.decoder: torchcodec ")
    with pytest.raises(RecipeError, match="torchcodec"):
        open_clip(path, MediaRef("good.mkv", "video"), ClipLimits(decoder="torchcodec"), CHOICE)
    assert why_not("pyav") == ""


_PARENT = """
import os, sys
from pathlib import Path
from mmalign.media import video
from mmalign.media.frames import FrameChoice
from mmalign.types import MediaRef
path = Path(sys.argv[1])
def opened():
    return len(open().images)
def open():
    return video.open_clip(path, MediaRef("a.mkv", "video"), video.ClipLimits(), FrameChoice(num_frames=20))
open()
(child,) = video.GUARD._idle
"""


def _run(script: str, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _PARENT + script, str(path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_a_child_ends_with_its_parent(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    script = "print(child._process.pid, flush=True)\nsys.stdin.read()\nimport time\ntime.sleep(1000)"
    with _run(script, path) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)  # lives
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(600):
        if not _lives(pid):
            break
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_process_starts_children_of_its_own(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    script = """
import warnings
warnings.simplefilter("error", ResourceWarning)
pid = os.fork()
if pid == 0:
    assert not video.GUARD._idle
    open()
    (own,) = video.GUARD._idle
    assert own._process.pid != child._process.pid
    video.GUARD.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
open()
assert video.GUARD._idle == [child]
print("both")
"""
    with _run(script, path) as parent:
        output, _ = parent.communicate(timeout=120)
    assert output == b"both\n"


def test_pictures_in_a_forked_process_stay_as_they_are(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    script = """
import warnings
warnings.simplefilter("error", ResourceWarning)
from PIL import ImageStat
def sums(clip):
    return [ImageStat.Stat(image).sum for image in clip.images]
def last():
    choice = FrameChoice(num_frames=20, at="last")
    return video.open_clip(path, MediaRef("a.mkv", "video"), video.ClipLimits(), choice)
clip = video.open_clip(path, MediaRef("a.mkv", "video"), video.ClipLimits(), FrameChoice(num_frames=20))
before = sums(clip)
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(writing)
    os.read(reading, 1)
    same = sums(clip) == before
    clip.images[0].putpixel((0, 0), (1, 2, 3))
    del clip
    os._exit(7 if same else 8)
assert not video.GUARD._idle
del clip
others = [last() for _ in range(3)]
assert all(sums(other) != before for other in others)
os.write(writing, b"x")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print("same")
"""
    with _run(script, path) as parent:
        output, _ = parent.communicate(timeout=120)
    assert output == b"same\n"


def test_what_a_forked_process_drops_is_still_there(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    script = """
from mmalign.media import ledger
from tests.media.test_blocks import Pair
ledger.KEPT = 0
pair = Pair()
images = pair.clip([7, 8], 30, 20)
pid = os.fork()
if pid == 0:
    del images
    os._exit(0)
os.waitpid(pid, 0)
print([image.getpixel((29, 19)) for image in images])
"""
    with _run(script, path) as parent:
        output, _ = parent.communicate(timeout=120)
    assert output == b"[(7, 7, 7), (8, 8, 8)]\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for num in (60, 1500):
        path = Film(f"{num}.mkv", "mpeg4", num=num, options={"g": "12"}).write(tmp_path)
        guard = Guard()
        monkeypatch.setattr(video, "GUARD", guard)
        clip = open_clip(path, MediaRef(path.name, "video"), ClipLimits(), FrameChoice(num_frames=16))
        assert clip.ref.frames is not None
        assert clip.ref.frames.total == num
        (child,) = guard._idle
        status = Path(f"/proc/{child._process.pid}/status").read_text()
        peaks.append(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]))
        guard.close()
    # All frames of the longer one would be 80 MiB.
    assert peaks[1] - peaks[0] < 20_000, peaks


class LateTimer:
    """A timer whose time is over while it is being called off, and which `fire` lets go off once more."""

    def __init__(self, interval: float, function: Callable[[], None]) -> None:
        self.fire = function
        timers.append(self)

    def start(self) -> None: ...

    def cancel(self) -> None:
        self.fire()


timers: list[LateTimer] = []


def test_a_timer_that_goes_off_too_late_hits_no_good_clip(
    guard: Guard, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.mkv"
    path.write_bytes(content)
    first = numbers(opened(path))
    with monkeypatch.context() as patched:
        patched.setattr("mmalign.media.guard.threading.Timer", LateTimer)
        assert numbers(opened(path)) == first  # the answer was there
        assert not guard._idle  # but its child was ended
    assert numbers(opened(path)) == first
    timers.pop().fire()  # its request is over
    assert len(guard._idle) == 1
    assert numbers(opened(path)) == first
    guard.close()


def test_who_interrupts_does_not_wait_for_a_hanging_decoder(guard: Guard, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hangs in C.mkv"
    path.write_bytes(content)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opened, path, 900.0)
        while not guard._busy:
            assert not opening.done()
        guard.interrupt()
        with pytest.raises(MediaError, match="decoder crashed"):
            opening.result()
    guard.close()
