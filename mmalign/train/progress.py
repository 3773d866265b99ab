"""What a person sees of a training run: one line with what is done, the rate and the time to go."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between lines where there is no terminal.
QUIET_S = 15.0
#: What is shown of a step's numbers.
SHOWN = ("loss", "margin", "accuracy")


class Meter:
    """How fast a training goes and how much memory it takes on `device`. Not among the run's own numbers, which are
    the same on every machine.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._then, self._peak = device, time.monotonic(), 0
        self._process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def step(self, tokens: int) -> dict[str, float]:
        """Numbers of the step since the last call, in which prompts and answers had so many tokens.

        `peak_memory_gb` is the most that tensors have taken on a GPU so far; on a CPU the most that the process has
        held at the end of a step.
        """
        now = time.monotonic()
        seconds, self._then = max(now - self._then, 1e-9), now
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._peak = max(self._peak, self._process.memory_info().rss)
        return {"step_seconds": seconds, "tokens_per_second": tokens / seconds, "peak_memory_gb": self._peak / 1e9}


def note_of(values: Mapping[str, float], speed: Mapping[str, float]) -> str:
    """A step in a few words: its loss, how well texts are told apart, tokens per second, memory."""
    words = [f"{name} {values[name]:.4g}" for name in SHOWN if name in values]
    return ", ".join([*words, f"{speed['tokens_per_second']:.0f} tokens/s", f"{speed['peak_memory_gb']:.1f} GB"])


def clock(seconds: float) -> str:
    """A time to go as hours, minutes and seconds: 1:05:09, or 5:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLine:
    """A moving line on a terminal; elsewhere a plain line on standard error now and then. Used as a context."""

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
            line = f"{self.what}: {self.done} of {self.total} {self.unit}, {note}, {clock(left)} to go"
            with suppress(OSError):  # nobody reads it; a training must not end by that
                print(line, file=sys.stderr, flush=True)
