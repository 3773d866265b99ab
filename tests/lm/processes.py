"""Server processes for tests, each with its port, its log and a home of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]


@dataclass
class Process:
    """A server process and where it answers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, path: str) -> None:
        for _ in range(6000):  # a server that dies ends this at once
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(self.root + path, timeout=60).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())


def start(command: list[str], folder: Path) -> Process:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    (folder / "home" / "hub").mkdir(parents=True)
    words = [word.format(port=port) for word in command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=REPO, env=environment, stdout=log, stderr=log)
    return Process(process, port, folder / "log")
