"""The child that decodes, with a PyAV that misbehaves as the name of the file says."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence

from mmalign.errors import MediaError
from mmalign.media import child
from mmalign.media.decoders.source import Pixels, Source


def _frames(source: Source, numbers: Sequence[int]) -> Iterator[Pixels]:
    good = _good(source, numbers)
    for place, pixels in enumerate(good):
        # All misbehave in the middle, when frames have gone out already.
        if place == 1:
            _misbehave(source.path.stem)
        yield pixels


def _misbehave(name: str) -> None:
    if name == "hangs in Python":
        time.sleep(1000)
    elif name == "hangs in C":
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter, so that no Python code runs any more
    elif name == "crashes":
        ctypes.string_at(0)
    elif name == "ends":
        os._exit(3)
    elif name == "prints":
        os.write(1, b'{"end": true}\n')
    elif name == "raises":
        raise KeyError("nobody\nmeant this")
    elif name == "refuses":
        raise MediaError("refuses: is refused late")


_good = child.BACKENDS["pyav"]()
child.BACKENDS["pyav"] = lambda: _frames
main = child.main
