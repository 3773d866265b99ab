"""How far a run is: done, left, rate, time to go, failures; a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from mmalign.engine.journal import Status

Clock = Callable[[], float]


class Progress(Protocol):
    """What generation tells about itself. `tick` comes every few seconds, also when nothing happens."""

    def start(self, title: str, total: int | None) -> None: ...

    def found(self, status: Status) -> None: ...

    def finished(self, status: Status) -> None: ...

    def tick(self) -> None: ...

    def end(self) -> None: ...


class Meter:
    """Counts and speed of one pass, independent of how they are shown.

    Args:
        title: What is counted.
        total: Number of samples, or None where it is not known.
        clock: Seconds that only grow; a clock that steps back is taken as standing still.
        window_s: The rate is taken over this many last seconds, because models warm up and machines are shared.
    """

    def __init__(self, title: str, total: int | None, clock: Clock = time.monotonic, window_s: float = 60.0) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self.counts: dict[Status, int] = {"done": 0, "empty": 0, "quarantined": 0}
        self._clock = clock
        self._window_s = window_s
        self._fresh = 0
        self._now = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._now, 0)])

    def add(self, status: Status, *, fresh: bool) -> None:
        """Count one sample; `fresh` samples were worked on now, the others are from an earlier start."""
        self.done += 1
        self.counts[status] += 1
        self._fresh += fresh

    def mark(self) -> None:
        """Note the time, for the rate; called every few seconds."""
        self._now = max(self._now, self._clock())
        self._marks.append((self._now, self._fresh))
        while len(self._marks) > 2 and self._marks[1][0] <= self._now - self._window_s:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """Fresh samples per second over the window, or None before there is anything to tell."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def left_s(self) -> float | None:
        """Seconds to go at the present rate, where it and the total are known."""
        rate = self.rate
        return None if rate is None or self.total is None else max(self.total - self.done, 0) / rate

    def text(self) -> str:
        """One line: "pairs: 120 of 1,000, 880 left, 14.2/s, 1 min to go, 3 quarantined, 7 without a pair"."""
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"]
        if self.total is not None:
            parts.append(f"{max(self.total - self.done, 0):,} left")
        if self.rate is not None:
            parts.append(f"{self.rate:.3g}/s" if self.rate < 100 else f"{self.rate:,.0f}/s")
        if self.left_s is not None:
            parts.append(f"{_span(self.left_s)} to go")
        if self.counts["quarantined"]:
            parts.append(f"{self.counts['quarantined']:,} quarantined")
        if self.counts["empty"]:
            parts.append(f"{self.counts['empty']:,} without a pair")
        return f"{self.title}: {', '.join(parts)}"


class Lines:
    """Plain lines, for logs: one at the start of a pass, one every `every_s` seconds, one at its end."""

    def __init__(self, stream: TextIO, every_s: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._meter = Meter("", None, clock)
        self._shown = clock()

    def start(self, title: str, total: int | None) -> None:
        self._meter = Meter(title, total, self._clock)
        self._show()

    def found(self, status: Status) -> None:
        self._meter.add(status, fresh=False)

    def finished(self, status: Status) -> None:
        self._meter.add(status, fresh=True)

    def tick(self) -> None:
        self._meter.mark()
        # A clock that was set back must not silence the log.
        if not 0 <= self._clock() - self._shown < self._every_s:
            self._show()

    def end(self) -> None:
        self._meter.mark()
        self._show()

    def _show(self) -> None:
        self._shown = self._clock()
        print(self._meter.text(), file=self._stream, flush=True)


class Terminal:
    """A moving bar with the same words."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._bar = Bar(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), console=console)
        self._meter = Meter("", None, clock)
        self._task: TaskID | None = None

    def start(self, title: str, total: int | None) -> None:
        self._meter = Meter(title, total, self._clock)
        self._task = self._bar.add_task(self._meter.text(), total=total)
        self._bar.start()

    def found(self, status: Status) -> None:
        self._meter.add(status, fresh=False)

    def finished(self, status: Status) -> None:
        self._meter.add(status, fresh=True)

    def tick(self) -> None:
        self._meter.mark()
        if self._task is not None:
            self._bar.update(self._task, completed=self._meter.done, description=self._meter.text())

    def end(self) -> None:
        self.tick()
        self._bar.stop()


class Silent:
    """No progress, for tests and for programs that show their own."""

    def start(self, title: str, total: int | None) -> None: ...

    def found(self, status: Status) -> None: ...

    def finished(self, status: Status) -> None: ...

    def tick(self) -> None: ...

    def end(self) -> None: ...


def progress_on(stream: TextIO | None = None) -> Progress:
    """A bar where `stream` (standard error by default) is a terminal, plain lines otherwise."""
    stream = stream or sys.stderr
    return Terminal(Console(file=stream)) if stream.isatty() else Lines(stream)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
