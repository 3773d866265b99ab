"""A process that makes files by number and takes them through their doors: a line with a number in, a verdict out.

Nothing that a file does may end it, raise anything but an error of mmalign's in one line, or warn.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

from mmalign.errors import MAX_MESSAGE, MMAlignError
from mmalign.media.guard import GUARD
from tests.fuzz.corpus import Case, made
from tests.fuzz.doors import DOORS, furnish

#: The seed, and a folder for the files that damage is done to.
SEED, PLACE = int(sys.argv[1]), Path(sys.argv[2])


def status(pid: int | str, field: str) -> int:
    """A number of kB from /proc; 0 where there is none."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0


def forget_peaks() -> None:
    """From here on the peaks of memory are those of the next file."""
    for pid in (os.getpid(), *decoders()):
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def decoders() -> list[int]:
    return [child._process.pid for child in GUARD._idle]


def check_line(error: MMAlignError) -> str:
    """The message, which must be one line that can be printed."""
    text = str(error)
    if not text or len(text) > MAX_MESSAGE or any(letter < " " or letter in "\x7f\x85\u2028\u202e" for letter in text):
        raise AssertionError(f"not one printable line: {text!r:.300}")
    text.encode("utf-8")
    return text


def verdict(case: Case, folder: Path) -> tuple[str, str]:
    """("accepted", ""), ("refused", the first reason) or ("bug", what is wrong)."""
    furnished = case.kind in ("lines", "table")
    data = folder / "data"
    if furnished:
        furnish(data)
    data.mkdir(exist_ok=True)
    path = data / case.name
    path.write_bytes(case.content)
    reasons: list[str] = []
    try:
        for error in DOORS[case.door](case, path):
            reasons.append(check_line(error))
    except MMAlignError as error:
        try:
            reasons.append(check_line(error))
        except (AssertionError, ValueError) as wrong:
            return "bug", str(wrong)
    except BaseException:
        return "bug", traceback.format_exc()
    return ("refused", reasons[0]) if reasons else ("accepted", "")


def main() -> None:
    warnings.simplefilter("error")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        case = made(SEED, int(line), PLACE)
        base = status("self", "VmRSS")
        forget_peaks()
        folder = Path(tempfile.mkdtemp(dir=PLACE))
        told, reason = verdict(case, folder)
        peak = status("self", "VmHWM") - base
        decoder = max((status(pid, "VmHWM") for pid in decoders()), default=0)
        shutil.rmtree(folder, ignore_errors=True)
        row = {"number": case.number, "kind": case.kind, "door": case.door, "told": told, "reason": reason}
        out.write(json.dumps({**row, "case": str(case), "kib": max(0, peak), "decoder_kib": decoder}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
