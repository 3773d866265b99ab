"""A thousand hostile files through the real doors: each is accepted, or refused in one line; nothing else happens.

`MMALIGN_FUZZ_FILES` sets how many, `MMALIGN_FUZZ_SEED` which; `python -m tests.fuzz SEED NUMBER` replays one of them.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz import seeds
from tests.fuzz.corpus import KINDS, made
from tests.fuzz.crew import verdicts

NUM = int(os.environ.get("MMALIGN_FUZZ_FILES", "1000"))
SEED = int(os.environ.get("MMALIGN_FUZZ_SEED", "0"))

#: KiB that a file may take beyond what a process had before, where it is read and where it is decoded.
MOST = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_a_thousand_hostile_files_are_accepted_or_refused(tmp_path: Path) -> None:
    rows = list(verdicts(SEED, range(NUM), tmp_path))
    bad = [f"{row['case']}: {row['reason']}" for row in rows if row["told"] == "bug"]
    assert not bad, "\n".join([f"python -m tests.fuzz {SEED} NUMBER replays one", *bad])
    large = [row for row in rows if max(row["kib"], row["decoder_kib"]) > MOST]
    assert not large, [(row["case"], row["kib"], row["decoder_kib"]) for row in large]
    assert len({row["number"] for row in rows}) == NUM >= 1000
    counts = Counter((row["kind"], row["told"]) for row in rows)
    for kind in set(KINDS):  # neither all doors shut nor all open
        assert counts[kind, "accepted"] >= NUM // 200, counts
        assert counts[kind, "refused"] >= NUM // 50, counts


def test_the_same_number_is_the_same_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    for number in range(60):
        assert made(7, number, one) == made(7, number, two)
    assert made(8, 1, one).content != made(7, 1, one).content


def test_real_media_are_among_the_files(tmp_path: Path) -> None:
    if not seeds.SHARED.is_dir():
        pytest.skip(f"no real media at {seeds.SHARED.name}")
    assert sum(name.startswith("real ") for name in seeds.pictures()) >= 6
    assert sum(name.startswith("real ") for name in seeds.clips(tmp_path)) >= 3
