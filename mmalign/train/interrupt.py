"""Ctrl-C and SIGTERM: the first asks to stop where nothing is lost, the second ends at once."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import gather

from mmalign.errors import Interrupted

log = logging.getLogger("mmalign.train")

#: Seconds within which a second signal is taken for an echo of the first.
ECHO_S = 1.0

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether to stop. `asked` tells what this process was asked, `agreed` what any rank was."""

    def __init__(self) -> None:
        self.asked = False

    def agreed(self) -> bool:
        """Whether any rank was asked to stop, the same on all ranks; all must call it, and all wait for each other."""
        state = PartialState()
        if state.num_processes == 1:
            return self.asked
        return bool(gather(torch.tensor([self.asked], device=state.device)).any())


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block the first SIGINT or SIGTERM is noted; the second does what it always does.

    What follows within `ECHO_S` counts as the first: launchers pass on what the terminal sends to their children too.
    Outside the main thread, where signals never arrive, nothing is ever noted. Raises Interrupted at the end of a block
    that had nothing left to stop.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    first = math.inf

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first > ECHO_S:
            restore()
            signal.raise_signal(number)
        elif not stop.asked:
            stop.asked, first = True, time.monotonic()
            log.warning("stopping as soon as nothing is lost by it; once more ends at once")

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
    if stop.asked:
        raise Interrupted("interrupted; what is done is kept, run the same command again to go on")
