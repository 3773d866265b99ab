"""What watches over the hostile files sees a hang, a crash, a traceback, a warning, an escape and eaten memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import crew

#: A worker whose door misbehaves as the number says.
WORKER = """
import os, sys, time, warnings
from mmalign.errors import DataError
from mmalign.media.read import open_media
from tests.fuzz import doors, worker

def door(case, path):
    if case.number == 1:
        time.sleep(1000)
    if case.number == 2:
        os.kill(os.getpid(), 11)
    if case.number == 3:
        raise KeyError("nobody meant this")
    if case.number == 4:
        warnings.warn("a library warns")
    if case.number == 5:
        kept = bytearray(300 * 2**20)
    if case.number == 6:
        raise DataError("x" * 9000 + "\\n")
    if case.number == 7:
        DataError.__str__ = lambda self: "two\\nlines"
        raise DataError("two\\nlines")
    if case.number == 8:
        row = doors.SampleRow("s", (doors.MediaRef("secret.png"),))
        yield from doors._opened([row], path.parent.with_name("outside"))
    yield from ()

for name in doors.DOORS:
    doors.DOORS[name] = door
worker.made = lambda seed, number, place: worker.Case(seed, number, "lines", "samples", "a.jsonl", b"", "")
worker.main()
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Any]]:
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    module = tmp_path / "bad_worker.py"
    module.write_text(WORKER)
    monkeypatch.setattr(crew, "HANGS_AFTER", 15.0)
    monkeypatch.setattr(crew, "WORKER", str(module))
    return {row["number"]: row for row in crew.verdicts(0, range(9), tmp_path / "place", workers=1)}


def test_everything_bad_is_seen(told: dict[int, dict[str, Any]]) -> None:
    assert told[0]["told"] == "accepted"
    assert (told[1]["told"], told[1]["reason"]) == ("bug", "hangs")
    assert told[2]["told"] == "bug"
    assert told[2]["reason"].startswith("crashes, exit status -11: Fatal Python error: Segmentation fault")
    assert told[3]["told"] == told[4]["told"] == "bug"
    assert "nobody meant this" in told[3]["reason"]
    assert "a library warns" in told[4]["reason"]
    assert told[5]["kib"] >= 290 * 2**10
    assert told[6]["told"] == "refused"
    assert "not one printable line" in told[7]["reason"]
    assert "EscapedError" in told[8]["reason"]
