"""What every stage trains on: known for all stages before the first, with what cannot be trained on left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.errors import TrainError
from mmalign.objectives import DPO, RRPO, SFT, Objective
from mmalign.pairs import PairRow
from mmalign.train.cache.reference import Measured
from mmalign.train.config import TrainConfig
from mmalign.train.data.curriculum import Curriculum, curriculum
from tests.train.rows import make_rows, quick


@pytest.fixture
def rows(tmp_path: Path) -> list[PairRow]:
    """Two pairs of each of three stages, the hardest first."""
    made = make_rows(tmp_path, 6, pictures=0)
    return [replace(row, stage=2 - index % 3) for index, row in enumerate(made)]


def by_letters(
    rows: Sequence[PairRow], config: TrainConfig, objective: Objective | None = None
) -> tuple[Curriculum, list[list[str]]]:
    """The curriculum where a letter is a token, and the ids that each call of `measure` was told."""
    calls = []

    def measure(given: list[PairRow], sides: tuple[str, ...]) -> Measured:
        calls.append([row.id for row in given])
        lengths = torch.tensor([[len(getattr(row, side)) for side in sides] for row in given])
        return Measured(lengths, lengths - 1, None)

    return curriculum(rows, objective or DPO(), config, measure), calls


def renewing(**changes: object) -> TrainConfig:
    return quick(stages="renew", **changes)


def test_stages_come_in_ascending_order(rows: list[PairRow]) -> None:
    plan, calls = by_letters(rows, renewing())
    assert [(stage.name, [row.stage for row in stage.rows]) for stage in plan.stages] == [
        ("stage-0", [0, 0]),
        ("stage-1", [1, 1]),
        ("stage-2", [2, 2]),
    ]
    assert calls == [[row.id for row in rows]], "all at once"
    plan, calls = by_letters(rows, renewing(sft_after_stages=True))
    last = plan.stages[-1]
    assert (last.name, last.rows, last.objective) == ("stage-sft", rows, SFT())
    assert calls == [[row.id for row in rows]], "the last stage's pairs are those of the stages before"
    with pytest.raises(ValueError, match="sft_after_stages is true, but stages is mixed"):
        quick(sft_after_stages=True)


def test_every_stage_knows_the_lengths_of_the_sides_it_looks_at(rows: list[PairRow]) -> None:
    plan, _ = by_letters(rows, renewing(sft_after_stages=True))
    for stage in plan.stages:
        sides = ["chosen"] if stage.name == "stage-sft" else ["chosen", "rejected"]
        expected = [[len(getattr(row, side)) for side in sides] for row in stage.rows]
        assert stage.measured.lengths.tolist() == expected
        assert (stage.measured.lengths - stage.measured.counts).unique().tolist() == [1]


def test_a_stage_that_is_too_long_is_skipped(rows: list[PairRow], caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(row, rejected="x" * 500) if row.stage == 1 else row for row in rows]
    with caplog.at_level(logging.WARNING):
        plan, _ = by_letters(rows, renewing(max_length=100))
    assert [stage.name for stage in plan.stages] == ["stage-0", "stage-2"]
    assert (plan.num_pairs, plan.num_dropped) == (4, 2)
    assert caplog.messages == [
        "stage-1 is skipped: of its 2 pairs 2 are longer than train.max_length 100, 0 have no words that differ"
    ]


def test_a_stage_without_words_that_differ_is_skipped(rows: list[PairRow], caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(row, rejected=row.chosen) if row.stage == 2 else row for row in rows]
    with caplog.at_level(logging.WARNING):
        plan, calls = by_letters(rows, renewing(), RRPO())
    assert [stage.name for stage in plan.stages] == ["stage-0", "stage-1"]
    assert all(row.chosen_spans for stage in plan.stages for row in stage.rows)
    assert (plan.num_pairs, plan.num_dropped) == (4, 2)
    assert [message for message in caplog.messages if "skipped" in message] == [
        "stage-2 is skipped: of its 2 pairs 0 are longer than train.max_length 2048, 2 have no words that differ"
    ]
    assert calls == [[row.id for row in rows if row.stage < 2]], "media of pairs that are left out are not opened"


def test_a_pair_counts_once(rows: list[PairRow]) -> None:
    """The stage of plain likelihood takes pairs that the others cannot: one of equal texts, one with a long side."""
    rows[0] = replace(rows[0], rejected=rows[0].chosen)
    rows[1] = replace(rows[1], rejected="x" * 500)
    rows[2] = replace(rows[2], chosen="x" * 500)
    plan, _ = by_letters(rows, renewing(max_length=100, sft_after_stages=True), RRPO())
    assert [len(stage.rows) for stage in plan.stages] == [1, 1, 1, 5]
    assert (plan.num_pairs, plan.num_dropped) == (5, 1)


def test_nothing_left_is_an_error_with_the_right_advice(rows: list[PairRow]) -> None:
    with pytest.raises(TrainError, match=r"6 of 6 pairs are longer than train.max_length 5, .*raise train.max_length$"):
        by_letters(rows, renewing(max_length=5))
    long = [replace(row, rejected="x" * 500) if row.stage == 2 else row for row in rows]
    with pytest.raises(TrainError, match=r"2 of 6 pairs .* pair s0#0\.0 has 500 tokens; .*, or set train.overl"):
        by_letters(long, renewing(max_length=100, overlong="error"))
    with pytest.raises(TrainError, match="6 of 6 pairs have no words that differ"):
        by_letters([replace(row, rejected=row.chosen) for row in rows], renewing(), RRPO())
