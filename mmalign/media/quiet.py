"""Silence for Pillow's warnings while a file is read: they name no file, and the same fact is said in our own words."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_readers = 0
_entry: object = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow, for as long as any thread is in this block.

    `warnings.catch_warnings` puts the whole filter list back at its end and so undoes what another thread did
    meanwhile. Here the first reader adds one filter and the last one takes out that filter alone.
    """
    global _readers, _entry
    with _lock:
        _readers += 1
        if _readers == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _entry = warnings.filters[0]
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0 and _entry in warnings.filters:
                warnings.filters.remove(_entry)  # type: ignore[attr-defined, unused-ignore]
