"""What holds for all tests: none fails for being slow on a busy machine, nor for what a shell happens to hold."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

#: A launcher, a cluster, proxies, the account of a hub and the look of a terminal: others' matters, not the tests'.
_OTHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"),
    *("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
)
for name in _OTHERS:
    os.environ.pop(name, None)
    os.environ.pop(name.lower(), None)
