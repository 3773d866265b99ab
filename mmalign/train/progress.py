"""What a person sees of a training run: one line with what is done, the rate and the time to go."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("mmalign.train")

#: Seconds between lines where there is no terminal.
QUIET_S = 15.0


class ProgressLine:
    """A moving line on a terminal; elsewhere a log line now and then. Used as a context."""

    def __init__(self, what: str, total: int, done: int = 0, *, unit: str, visible: bool = True) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._first, self._begin = done, time.monotonic()
        self._spoken = self._begin
        console = Console(stderr=True)
        self._visible = visible
        self._bar: Progress | None = None
        if visible and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown beside, such as the loss."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._first) / max(now - self._begin, 1e-9)
        note = f"{rate:.2f} {self.unit}/s {note}".strip()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
        elif self._visible and (now - self._spoken >= QUIET_S or self.done == self.total):
            self._spoken = now
            left = (self.total - self.done) / max(rate, 1e-9)
            log.info("%s: %d of %d %s, %s, %.0f s to go", self.what, self.done, self.total, self.unit, note, left)
