"""The first pass: right numbers, made once, going on after an interruption, never taken for another run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.cache import reference
from mmalign.train.cache.keys import row_key, rows_key, weights_key
from mmalign.train.cache.parts import Parts
from mmalign.train.cache.reference import FirstPass
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.logps import completion_logps, completion_states
from tests.models import shared, tiny
from tests.train.rows import make_rows

Scores = tuple[Tensor, Tensor | None]


def first_pass(
    root: Path, name: str = "qwen3-vl", batch_size: int = 2, max_length: int | None = None, *, states: bool = False
) -> FirstPass:
    model = shared(name).model

    @torch.no_grad()
    def score(batch: PairBatch) -> Scores:
        return completion_states(model, batch) if states else (completion_logps(model, batch), None)

    return FirstPass(
        folder=root / "reference",
        key="key",
        collate=Collator(Renderer(shared(name).processor), root, MediaLimits()),
        score=score,
        batch_size=batch_size,
        max_length=max_length,
    )


def quiet(_count: int) -> None:
    return


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PairRow]:
    monkeypatch.setattr(reference, "PART_SIZE", 2)
    return make_rows(tmp_path, 5)


def test_numbers_are_those_of_the_model(tmp_path: Path, rows: list[PairRow]) -> None:
    first = first_pass(tmp_path)
    measured = first.run(rows, quiet)
    batch = first.collate([rows[3], rows[0]])
    with torch.no_grad():
        expected = completion_logps(shared("qwen3-vl").model, batch)
    torch.testing.assert_close(measured.reference([3, 0], batch.mask), expected, atol=1e-5, rtol=1e-5)
    assert measured.lengths[[3, 0]].tolist() == batch.lengths.T.tolist()
    assert measured.counts[[3, 0]].tolist() == batch.mask.sum(-1).view(2, 2).T.tolist()


def test_an_interrupted_pass_goes_on(tmp_path: Path, rows: list[PairRow]) -> None:
    expected = first_pass(tmp_path / "whole").run(make_rows(_made(tmp_path / "whole"), 5), quiet)
    calls: list[tuple[str, ...]] = []

    def counting(score: Callable[[PairBatch], Scores], stop_at: int) -> Callable[[PairBatch], Scores]:
        def scored(batch: PairBatch) -> Scores:
            calls.append(batch.ids)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return score(batch)

        return scored

    first = first_pass(tmp_path)
    assert first.score is not None
    with pytest.raises(KeyboardInterrupt):
        replace(first, score=counting(first.score, 2)).run(rows, quiet)
    assert len(calls) == 2
    again = replace(first, score=counting(first.score, 99)).run(rows, quiet)
    assert len(calls) == 2 + 2, "the first part is read, the second and third are made"
    assert replace(first, score=counting(first.score, 5)).run(rows, quiet).counts.tolist() == again.counts.tolist()
    assert len(calls) == 4
    assert again.logps is not None
    assert expected.logps is not None
    for found, wanted in zip(again.logps, expected.logps, strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_half_written_part_is_made_again(tmp_path: Path, rows: list[PairRow]) -> None:
    first = first_pass(tmp_path)
    home = tmp_path / "reference" / "key"
    home.mkdir(parents=True)
    (home / ".partial-part-0.safetensors").write_bytes(b"\x00" * 20)
    measured = first.run(rows, quiet)
    assert len(measured.counts) == 5
    assert len(list(home.glob("part-*.safetensors"))) == 3


def test_ranks_share_the_parts(tmp_path: Path, rows: list[PairRow]) -> None:
    made = []
    for rank in range(2):
        alone = replace(first_pass(tmp_path), folder=tmp_path / f"rank-{rank}", rank=rank, world=2)
        with pytest.raises(KeyError):  # the other's rows are not there
            alone.run(rows, quiet)
        made.append(set(Parts(alone.folder / "key").read([row_key(row, tmp_path) for row in rows])))
    assert [len(keys) for keys in made] == [3, 2]
    assert len(made[0] | made[1]) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pairs_over_the_limit_are_measured_but_not_scored(tmp_path: Path, rows: list[PairRow], batch_size: int) -> None:
    lengths = first_pass(tmp_path).run(rows, quiet).lengths.amax(1).tolist()
    limit = sorted(lengths)[2]
    limited = replace(first_pass(tmp_path, batch_size=batch_size, max_length=limit), key="limited")
    measured, expected = limited.run(rows, quiet), first_pass(tmp_path).run(rows, quiet)
    assert measured.lengths.tolist() == expected.lengths.tolist()
    assert measured.counts.tolist() == expected.counts.tolist()
    assert measured.logps is not None
    assert expected.logps is not None
    for length, found, wanted in zip(lengths, measured.logps, expected.logps, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other if length <= limit else torch.zeros_like(one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_states_are_kept_on_disk_pair_by_pair(tmp_path: Path, rows: list[PairRow], batch_size: int) -> None:
    limit = sorted(first_pass(tmp_path).run(rows, quiet).lengths.amax(1).tolist())[3]
    first = replace(first_pass(tmp_path, batch_size=batch_size, max_length=limit, states=True), key="states")
    measured = first.run(rows, quiet)
    short = [index for index, length in enumerate(measured.lengths.amax(1).tolist()) if length <= limit][::-1]
    assert len(short) == 4
    batch = first.collate([rows[index] for index in short])
    with torch.no_grad():
        expected_logps, expected = completion_states(shared("qwen3-vl").model, batch)
    torch.testing.assert_close(measured.states(short), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(measured.reference(short, batch.mask), expected_logps, atol=1e-4, rtol=1e-5)
    assert len(expected) == int(batch.mask[: len(short)].sum())


def test_pairs_about_other_media_are_measured_in_batches_of_their_own(tmp_path: Path, rows: list[PairRow]) -> None:
    texts = make_rows(tmp_path, 5, pictures=0)
    mixed = [rows[0], texts[1], rows[2], texts[3], rows[4]]
    seen = []
    first = first_pass(tmp_path, batch_size=5, states=True)

    def score(batch: PairBatch) -> Scores:
        seen.append(batch.ids)
        assert first.score is not None
        return first.score(batch)

    measured = replace(first, score=score).run(mixed, quiet)
    assert sorted(map(sorted, seen)) == [["s0#0.0", "s2#0.0"], ["s1#0.0", "s3#0.0"], ["s4#0.0"]]
    for index, row in enumerate(mixed):
        batch = first.collate([row])
        with torch.no_grad():
            logps, states = completion_states(shared("qwen3-vl").model, batch)
        torch.testing.assert_close(measured.reference([index], batch.mask), logps, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(measured.states([index]), states, atol=1e-4, rtol=1e-5)


def test_without_a_score_only_lengths_are_kept(tmp_path: Path, rows: list[PairRow]) -> None:
    measured = replace(first_pass(tmp_path), score=None).run(rows, quiet)
    assert measured.logps is None
    assert measured.counts.shape == (5, 2)


def test_a_reference_that_is_no_number_names_the_pair(tmp_path: Path, rows: list[PairRow]) -> None:
    def score(batch: PairBatch) -> Scores:
        values = torch.zeros(batch.mask.shape)
        values[-1] = torch.nan
        return values, None

    with pytest.raises(TrainError, match=r"pair s1#0\.0: the reference"):
        replace(first_pass(tmp_path), score=score).run(rows, quiet)


def test_keys_tell_weights_and_rows_apart(tmp_path: Path, rows: list[PairRow]) -> None:
    assert weights_key(tiny("llama").model) == weights_key(tiny("llama").model)
    assert weights_key(tiny("llama").model) != weights_key(tiny("llama", seed=1).model)
    changed = tiny("llama").model
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1e-3
    assert weights_key(tiny("llama").model) != weights_key(changed)
    assert rows_key(rows) != rows_key(rows[::-1])
    heavier = [replace(rows[0], weight=2.0), *rows[1:]]
    assert rows_key(rows) != rows_key(heavier)
    assert row_key(rows[0], tmp_path) == row_key(heavier[0], tmp_path)
    other = [replace(rows[0], chosen="No."), *rows[1:]]
    assert rows_key(rows) != rows_key(other)
    assert row_key(rows[0], tmp_path) != row_key(other[0], tmp_path)
