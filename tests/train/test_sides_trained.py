"""Whole runs on pairs with lists, further contexts and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmalign.errors import TrainError
from mmalign.media.read import MediaLimits
from mmalign.objectives import OBJECTIVES
from mmalign.train.data.collate import Collator
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, numbers, trainer
from tests.train.test_side_losses import rich


@pytest.mark.parametrize("name", ["lipo", "cut", "d2o"])
def test_neither_micro_batches_nor_how_the_reference_is_computed_matter(name: str, tmp_path: Path) -> None:
    """Lists of 4, 3 and 2 answers; pooled token means of further sides; references of some sides only."""
    rows = rich(tmp_path, 4, pictures=0)
    ways = {
        "whole": quick(micro_batch_size=4, epochs=2),
        "parts": quick(micro_batch_size=1, epochs=2),
        "plain": quick(micro_batch_size=4, epochs=2, shared_prefix="off", precompute_reference=False),
    }
    for run, config in ways.items():
        trainer(tmp_path, rows, config, OBJECTIVES[name](), loaded=tiny("llama"), run=run).train()
    whole = numbers(tmp_path, "whole")
    assert whole[0]["loss"] != pytest.approx(whole[1]["loss"], abs=1e-4)
    for run in ("parts", "plain"):
        assert_same_curve(numbers(tmp_path, run), whole, 2e-5)


def test_what_a_pair_lacks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    full, bare = rich(tmp_path, 2, pictures=0), make_rows(tmp_path, 2, pictures=0)
    with pytest.raises(TrainError, match=r"pair s1#0\.0 \(row 1\) has no sides\.answers, which objective lipo needs"):
        trainer(tmp_path, [full[0], bare[1]], quick(), OBJECTIVES["lipo"](), loaded=tiny("llama"))
    assert not (tmp_path / "run").exists()


def test_too_long_counts_the_longest_answer_of_a_list(tmp_path: Path) -> None:
    """The third pair's list ends before the longest text; the others' hold it in the middle."""
    rows, loaded = rich(tmp_path, 4, pictures=0), tiny("llama")
    most = int(Collator(loaded.renderer, tmp_path, MediaLimits(), ("answers",))(rows).lengths.max())
    run = trainer(tmp_path, rows, quick(max_length=most - 1), OBJECTIVES["lipo"](), loaded=loaded)
    result = run.train()
    assert (result.num_pairs, result.num_dropped) == (1, 3)
