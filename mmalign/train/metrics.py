"""`metrics.jsonl`: one line of JSON per optimizer step, each step once however often a run is interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mmalign.atomic import explained, replacing


class MetricsLog:
    """Appends to a metrics file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Keep the lines up to `step`, the last one done; later lines, and one cut off in writing, go."""
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def append(self, values: Mapping[str, float]) -> None:
        """Add one step's numbers."""
        with explained(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(values)) + "\n")

    def sync(self) -> None:
        """Flush what was added to the disk: a checkpoint never outlives the numbers of its steps."""
        with explained(self.path), self.path.open("rb") as stream:
            os.fsync(stream.fileno())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The steps logged in `path`, in order; empty when there is no such file. A line cut off in writing is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
