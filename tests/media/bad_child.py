"""The child that decodes, with little memory, and with a reader of pictures that misbehaves as the file's name says."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from mmalign.media import child

child.MAX_MEMORY = 400 * 2**20  # type: ignore[misc]
child.MAX_FRAMES_BYTES = 2 * 192 * 96 * 4  # type: ignore[misc]

_good = child.decode_picture


def _misbehaving(content: bytes, name: str, limits: Any) -> Any:
    if name == "hangs.png":
        time.sleep(1000)
    if name == "crashes.png":
        ctypes.string_at(0)
    return _good(content, name, limits)


child.decode_picture = _misbehaving
main = child.main
