"""Runs a method over samples and keeps what comes out: run directory, journal, generation, progress."""

from mmalign.engine.generate import generate, generate_async
from mmalign.engine.progress import Lines, Progress, Silent, Terminal, progress_on
from mmalign.engine.recorder import TooManyBad
from mmalign.engine.results import Summary
from mmalign.engine.rundir import RunDir

__all__ = [
    "Lines",
    "Progress",
    "RunDir",
    "Silent",
    "Summary",
    "Terminal",
    "TooManyBad",
    "generate",
    "generate_async",
    "progress_on",
]
