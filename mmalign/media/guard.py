"""Decoders run in child processes, so that one that hangs or crashes costs its picture or clip and nothing else.

A child lives on from file to file; starting one takes a third of a second, a request in a running one microseconds. It
is started as a program of its own, not forked, and knows nothing of this process but the requests.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Final

from PIL import Image

from mmalign.errors import MediaError, MMAlignError, RecipeError
from mmalign.media.blocks import Block
from mmalign.media.ledger import Ledger
from mmalign.types import Row

_START = "import sys; sys.path[:] = {path!r}; from {entry} import main; {then}"

#: Longest time that is waited for a decoder, in seconds; clocks count no further than some billions.
MAX_SECONDS: Final = 1e6

#: For glibc in a child: keep what one frame was decoded in for the next, as asking the system for it anew takes as long
#: as decoding. At most 64 MiB that are not in use are kept.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a child answered: the head, and the frames in RGB."""

    head: Row
    frames: list[Image.Image]


class Guard:
    """Children that decode, as many as threads ask at the same time; safe for threads and forks.

    Args:
        entry: The module whose `main` a child runs.
    """

    def __init__(self, entry: str = "mmalign.media.child") -> None:
        self._entry = entry
        self._forget()
        os.register_at_fork(before=self._part, after_in_parent=self._go_on, after_in_child=self._forget)
        atexit.register(self.close)

    def _forget(self) -> None:
        """Start without children: those of the process that forked this one stay its own."""
        for child in getattr(self, "_idle", ()):
            child.disown()
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()

    def _part(self) -> None:
        """Let no child write any more where the process that is now forked will see pictures."""
        self._lock.acquire()
        used = [child for child in self._idle if child.ledger.is_used]
        self._idle = [child for child in self._idle if child not in used]
        for child in used:
            child.end()
        for child in self._busy:
            child.is_last = True

    def _go_on(self) -> None:
        self._lock.release()

    def decode(self, request: Row, meanwhile: Callable[[], None] = lambda: None) -> Decoded:
        """Have a request answered (`mmalign.media.child`), which must take at most `request["seconds"]`.

        `meanwhile` runs in this thread while the child works; what it raises ends the request. Raises MediaError with
        `request["name"]` when the file cannot be decoded, the time is over or the decoder crashed, and RecipeError when
        the decoder does not load, or no process can be started here, which is no file's fault.
        """
        request = {**request, "seconds": min(request["seconds"], MAX_SECONDS)}
        with suppress(_KilledError):  # when memory is short the system ends processes, and not the one that takes most
            return self._decode(request, meanwhile)
        try:
            return self._decode(request, meanwhile)
        except _KilledError as error:
            raise MediaError(str(error)) from None

    def _decode(self, request: Row, meanwhile: Callable[[], None]) -> Decoded:
        child = self._lent(request)
        ended = threading.Event()

        def end_late() -> None:
            with self._lock:  # a timer that has begun cannot be called back, and must not hit the next request
                if not ended.is_set():
                    child.stop_late()

        watch = threading.Timer(request["seconds"], end_late)
        watch.daemon = True
        watch.start()
        is_good = False
        try:
            meanwhile()
            decoded = _conversation(child, request["name"])
            is_good = True
            return decoded
        except _AnsweredError as answer:
            is_good = True
            raise answer.error from None
        except EOFError:
            if child.is_late:
                raise MediaError(
                    f"{request['name']}: was not decoded within {request['seconds']:g} seconds; it is damaged, or "
                    "takes longer than data.decode_seconds allows"
                ) from None
            fate = child.fate()
            message = f"{request['name']}: its decoder crashed ({fate}); it may be damaged"
            if fate == "SIGKILL" and not child.is_interrupted:
                raise _KilledError(message) from None
            if fate.startswith("exit") and (reason := self._why_none_starts()):
                raise RecipeError(f"the process that decodes pictures and clips does not start: {reason}") from None
            raise MediaError(message) from None
        finally:
            watch.cancel()
            with self._lock:
                ended.set()
                self._busy.discard(child)
                is_good = is_good and not child.is_late and not child.is_last
                if is_good:
                    self._idle.append(child)
            if not is_good:
                child.end()

    def _lent(self, request: Row) -> _Child:
        """A child that has heard the request: an idle one, or a new one."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
                if child is not None:
                    self._busy.add(child)
            if child is None:
                child = _Child(self._entry)
                with self._lock:
                    self._busy.add(child)
                child.ask(request)  # one that dies at once is noticed when its answer is read
                return child
            if child.ask(request):
                return child
            with self._lock:
                self._busy.discard(child)
            child.end()

    def _why_none_starts(self) -> str:
        """Why no child gets as far as its first request; "" where one does."""
        tried = subprocess.run(
            _command(self._entry, "0"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=300
        )
        lines = tried.stderr.decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no reason given") if tried.returncode else ""

    def interrupt(self) -> None:
        """End the children that are at work; whoever waits for them gets MediaError at once."""
        with self._lock:
            for child in self._busy:
                child.is_interrupted = True
                child.kill()

    def close(self) -> None:
        """End the idle children."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()


#: Where this process has its pictures and clips decoded.
GUARD: Final = Guard()


def _command(entry: str, then: str, *arguments: str) -> list[str]:
    """What starts Python on the module `entry`, whose `main` is there when `then` runs."""
    path = [place for place in sys.path if isinstance(place, str)]  # Python too passes over what is no text
    return [sys.executable, "-c", _START.format(path=path, entry=entry, then=then), *arguments]


class _Child:
    """A process that decodes, used by one thread at a time. Raises RecipeError where none can be started."""

    def __init__(self, entry: str) -> None:
        with ExitStack() as stack:
            stack.enter_context(_explained())
            self.ledger = Ledger()
            stack.callback(self.ledger.close)
            shared = self.ledger.descriptor
            self._process = subprocess.Popen(
                _command(entry, "main()", str(shared)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[shared],
                env={**_MALLOC, **os.environ},
            )
            stack.pop_all()
        self._requests: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self._answers: Any = self._process.stdout
        self.is_late = False
        self.is_last = False  # whether the present request is the last
        self.is_interrupted = False

    def ask(self, request: Row) -> bool:
        """Send a request; False when the child has ended since it was last used."""
        try:
            self._requests.write(json.dumps({**request, "blocks": self.ledger.rows()}).encode() + b"\n")
            self._requests.flush()
        except (OSError, ValueError):  # the pipe is broken, or closed
            return False
        return True

    def answer(self) -> Row:
        """The answer. Raises EOFError when the child has ended."""
        text = self._answers.readline()
        if not text.endswith(b"\n"):
            raise EOFError
        row: Row = json.loads(text)
        return row

    def stop_late(self) -> None:
        """End the child because its time is over; whoever waits for its answer gets EOFError."""
        self.is_late = True
        self.kill()

    def kill(self) -> None:
        """End the child; its pipes stay open for whoever uses it."""
        self._process.kill()

    def fate(self) -> str:
        """How the child ended by itself."""
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """End the child and close the pipes."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._requests.close()
        self._answers.close()
        self.ledger.close()

    def disown(self) -> None:
        """Close the copies of another process's pipes; its child is left alone."""
        self._process.returncode = 0
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        self.ledger.close()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"the process that decodes pictures and clips cannot be started: {error.strerror or error}; this machine's "
            "limits (`ulimit -n`, `ulimit -u`) or its memory are used up"
        ) from None


class _KilledError(Exception):
    """Somebody else ended the child; the message is the one for its file."""


class _AnsweredError(Exception):
    """The child said why it cannot; it is ready for the next request."""

    def __init__(self, error: MMAlignError) -> None:
        super().__init__(str(error))
        self.error = error


def _conversation(child: _Child, name: str) -> Decoded:
    row = child.answer()
    if "error" in row:
        raise _AnsweredError(MediaError(row["error"]))
    if "absent" in row:
        raise _AnsweredError(RecipeError(f"data.decoder: {row['absent']}"))
    if "bug" in row:
        raise _AnsweredError(MediaError(f"{name}: its decoder failed ({row['bug']})"))
    if "block" not in row:
        return Decoded(row.get("head", {}), [])
    return Decoded(row["head"], child.ledger.images(Block(*row["block"]), row["sizes"]))
