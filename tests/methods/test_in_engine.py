"""What methods for clips ask of the engine: single pairs that are dropped are counted, other media are refused."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

from mmalign.errors import NoPair
from mmalign.lm.bound import SampleLM
from mmalign.methods import method
from mmalign.methods.rrpo import RRPO
from mmalign.methods.videosavi import VideoSAVi
from mmalign.types import Completion, MediaRef, Pair, Sample, SampleRow
from tests.engine.cases import make, sample_rows


@method("dropping", media=("image", "video", "text"))
class Dropping:
    """Makes one pair for samples with an even number, and says twice why not."""

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair | NoPair]:
        yield NoPair("too short")
        if int(sample.id.rpartition("-")[2]) % 2 == 0:
            yield Pair(sample.ask("?"), Completion("a"), Completion("b"))
        yield NoPair("too long")


def test_dropped_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    summary = make(tmp_path, sample_rows(10), Dropping())
    assert summary.discarded == {"too short": 10, "too long": 10}
    assert summary.pairs == 5
    assert summary.empty == {"too short": 5}
    assert not summary.quarantined


def test_media_of_another_kind_go_to_quarantine_unopened(tmp_path: Path) -> None:
    rows = [SampleRow("p", (MediaRef("missing.png"),), prompt="?")]
    summary = make(tmp_path, rows, RRPO())
    assert summary.quarantined == {"missing.png is a picture; method rrpo takes videos only": 1}


def test_samples_without_a_clip_go_to_quarantine_where_a_clip_is_damaged(tmp_path: Path) -> None:
    rows = [SampleRow("words", prompt="What happens?", meta={"answer": "A man opens the door and leaves."})]
    for number, way in enumerate((RRPO(), VideoSAVi())):
        summary = make(tmp_path / str(number), rows, way)
        [reason] = summary.quarantined
        assert reason.startswith("the sample has no media; method ")
        assert summary.pairs == 0
