"""What the first pass keeps is found again row by row, and by nothing that it does not depend on."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.errors import Interrupted, TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.cache import parts, reference
from mmalign.train.cache.keys import row_key, template_key, weights_key
from mmalign.train.cache.parts import Numbers, Parts, trim
from mmalign.train.cache.reference import FirstPass, Measured
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.interrupt import Stop
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import trainer

PROCESSOR = tiny("llama").processor


@dataclass
class Scorer:
    """A reference whose log-probs are made of the tokens themselves; it remembers which pairs it was asked about."""

    asked: list[str] = field(default_factory=list)
    states: bool = False

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        self.asked += batch.ids
        labels = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, batch.places.labels.float())
        first = batch.mask[batch.rows_of(batch.sides[0])]
        return -labels / 7, labels[batch.rows_of(batch.sides[0])][first][:, None] if self.states else None


def first_pass(root: Path, score: Scorer | None, **changes: Any) -> FirstPass:
    collate = Collator(Renderer(PROCESSOR), root, MediaLimits())
    settings = {"folder": root / "kept", "key": "key", "batch_size": 2, "max_length": None, **changes}
    return FirstPass(collate=collate, score=score, **settings)


def asked_by(root: Path, rows: Sequence[PairRow], **changes: Any) -> list[str]:
    """Which pairs a pass computes."""
    score = Scorer()
    first_pass(root, score, **changes).run(rows, lambda _: None)
    return sorted(score.asked)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PairRow]:
    monkeypatch.setattr(reference, "PART_SIZE", 2)
    return make_rows(tmp_path, 5, pictures=0)


def test_rows_that_did_not_change_are_read(tmp_path: Path, rows: list[PairRow]) -> None:
    assert asked_by(tmp_path, rows[:3]) == ["s0#0.0", "s1#0.0", "s2#0.0"]
    assert asked_by(tmp_path, rows[::-1]) == ["s3#0.0", "s4#0.0"]
    assert asked_by(tmp_path, [rows[4], rows[1]]) == []
    changed = replace(rows[2], rejected="No.")
    assert asked_by(tmp_path, [*rows[3:], changed, *rows[:2]]) == ["s2#0.0"]
    relabelled = [replace(row, id=f"other-{row.id}", weight=2.0, p=0.5, chosen_spans=((0, 3),)) for row in rows]
    assert asked_by(tmp_path, relabelled) == []


def test_numbers_go_with_their_rows(tmp_path: Path, rows: list[PairRow]) -> None:
    whole = first_pass(tmp_path, Scorer(states=True), folder=tmp_path / "whole").run(rows, lambda _: None)
    first_pass(tmp_path, Scorer(states=True)).run(rows[1:4], lambda _: None)
    order = [3, 0, 4, 2, 1, 3]
    found = first_pass(tmp_path, Scorer(states=True)).run([rows[place] for place in order], lambda _: None)
    assert found.logps is not None
    assert whole.logps is not None
    for index, place in enumerate(order):
        for one, other in zip(found.logps[index], whole.logps[place], strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)
        torch.testing.assert_close(found.states([index]), whole.states([place]), atol=0, rtol=0)
    assert found.lengths.tolist() == whole.lengths[order].tolist()
    assert found.counts.tolist() == whole.counts[order].tolist()


@pytest.mark.parametrize("sides", [("chosen",), ("chosen", "rejected")])
def test_a_row_that_is_there_twice_is_computed_once(
    sides: tuple[str, ...], tmp_path: Path, rows: list[PairRow]
) -> None:
    score = Scorer()
    first = first_pass(tmp_path, score)
    replace(first, collate=replace(first.collate, sides=sides)).run([*rows, *rows], lambda _: None)
    assert sorted(score.asked) == [f"s{index}#0.0" for index in range(5)]


def test_progress_counts_every_row_once(tmp_path: Path, rows: list[PairRow]) -> None:
    told: list[int] = []
    first_pass(tmp_path, Scorer()).run(rows[:2], told.append)
    assert told == [0, 2]
    told.clear()
    first_pass(tmp_path, Scorer()).run(rows, told.append)
    assert told == [2, 2, 1]


def test_a_higher_limit_scores_what_was_too_long(tmp_path: Path, rows: list[PairRow]) -> None:
    lengths = first_pass(tmp_path, None, key="lengths").run(rows, lambda _: None).lengths.amax(1).tolist()
    longest = max(range(5), key=lengths.__getitem__)
    limit = lengths[longest] - 1
    assert rows[longest].id not in asked_by(tmp_path, rows, max_length=limit)
    assert asked_by(tmp_path, rows, max_length=limit) == []
    assert asked_by(tmp_path, rows, max_length=limit + 1) == [row.id for row in rows if row.id == rows[longest].id]
    assert asked_by(tmp_path, rows, max_length=None) == []
    assert asked_by(tmp_path, rows, max_length=limit) == []


def test_a_pass_that_is_asked_to_stop_keeps_the_batches_it_made(tmp_path: Path, rows: list[PairRow]) -> None:
    stop = Stop()

    class Stopping(Scorer):
        def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
            stop.asked = len(self.asked) == 2
            return super().__call__(batch)

    score = Stopping()
    with pytest.raises(Interrupted, match="run the same command again to go on"):
        first_pass(tmp_path, score, batch_size=1, stop=stop).run(rows, lambda _: None)
    assert len(score.asked) == 3
    assert sorted([*score.asked, *asked_by(tmp_path, rows)]) == [row.id for row in rows]


@pytest.mark.parametrize("broken", [b"", b"\x00" * 40, b"half"])
def test_a_part_that_cannot_be_read_is_made_again(broken: bytes, tmp_path: Path, rows: list[PairRow]) -> None:
    first_pass(tmp_path, Scorer()).run(rows[:2], lambda _: None)
    [part] = (tmp_path / "kept" / "key").iterdir()
    part.write_bytes(broken)
    assert asked_by(tmp_path, rows[:2]) == ["s0#0.0", "s1#0.0"]
    assert asked_by(tmp_path, rows[:2]) == []


def test_several_processes_fill_one_folder(tmp_path: Path, rows: list[PairRow]) -> None:
    expected = first_pass(tmp_path, Scorer(), folder=tmp_path / "alone").run(rows, lambda _: None)

    def work(_: int) -> Measured:
        one = first_pass(tmp_path, Scorer(), batch_size=1)
        # A process has a tokenizer of its own; two threads must not use one at the same time.
        own = Collator(Renderer(copy.deepcopy(PROCESSOR)), tmp_path, MediaLimits())
        return replace(one, collate=own).run(rows, lambda _: None)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            assert found.logps is not None
            assert expected.logps is not None
            for one, other in zip(found.logps, expected.logps, strict=True):
                assert [part.tolist() for part in one] == [part.tolist() for part in other]
    assert not list((tmp_path / "kept").rglob(".partial-*"))


def test_media_without_a_checksum_are_known_by_their_content(tmp_path: Path) -> None:
    [row] = make_rows(tmp_path, 1)
    part = row.context[0]["content"][0]
    bare = replace(row, context=[{"role": "user", "content": [{**part, "sha256": ""}, row.context[0]["content"][1]]}])
    before = row_key(bare, tmp_path)
    assert row_key(bare, tmp_path) == before
    (tmp_path / part["path"]).write_bytes(b"other")
    assert row_key(bare, tmp_path) != before
    assert row_key(row, tmp_path) == row_key(row, tmp_path / "elsewhere"), "with a checksum no file is opened"
    missing = row_key(bare, tmp_path / "elsewhere")
    assert missing not in (before, row_key(bare, tmp_path))


# Bounded -------------------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, age_s: float) -> Path:
    Parts(folder).write({name: Numbers(torch.ones(1), torch.ones(1, dtype=torch.long), torch.ones(1))})
    path = max(folder.glob("part-*"), key=lambda path: path.stat().st_mtime_ns)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = parts.IN_USE_S
    kept = [written(tmp_path / str(age), "a", age * day) for age in (4, 3, 2, 0.5, 0)]
    monkeypatch.setattr(parts, "SPARE_BYTES", kept[0].stat().st_size * 2)
    left = tmp_path / ".partial-part-1.safetensors"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * day,) * 2)
    young = tmp_path / ".partial-part-2.safetensors"
    young.write_bytes(b"half")
    trim(tmp_path)
    assert [path.exists() for path in (*kept, left, young)] == [False, True, True, True, True, False, True]
    assert Parts(kept[1].parent).read(["a"]), "reading counts as using"
    monkeypatch.setattr(parts, "SPARE_BYTES", 0)
    trim(tmp_path)
    assert [path.exists() for path in kept] == [False, True, False, True, True]


def test_states_that_were_removed_are_told_in_one_line(tmp_path: Path, rows: list[PairRow]) -> None:
    found = first_pass(tmp_path, Scorer(states=True)).run(rows[:1], lambda _: None)
    for part in (tmp_path / "kept").rglob("part-*"):
        part.unlink()
    with pytest.raises(TrainError, match=r"part-\w+\.safetensors: .*is gone; run the same command again"):
        found.states([0])


def test_what_was_read_stays_known_when_its_file_goes(tmp_path: Path, rows: list[PairRow]) -> None:
    whole = first_pass(tmp_path, Scorer()).run(rows[:2], lambda _: None)
    old = list((tmp_path / "kept").rglob("part-*"))

    def progress(_: int) -> None:
        for part in old:  # another process makes room during a long pass
            part.unlink(missing_ok=True)

    found = first_pass(tmp_path, Scorer()).run(rows, progress)
    assert found.logps is not None
    assert whole.logps is not None
    for pair in zip(found.logps, whole.logps, strict=False):
        assert all(torch.equal(*both) for both in zip(*pair, strict=True))


# What a key is made of -----------------------------------------------------------------------------------------------


def test_any_single_weight_changes_the_key() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = nn.Linear(300, 300, dtype=dtype)
        before = weights_key(model)
        assert weights_key(model) == before
        for place in ((0, 0), (137, 211), (299, 299)):
            with torch.no_grad():
                kept = model.weight[place].clone()
                model.weight[place] *= 1.01
                assert weights_key(model) != before
                model.weight[place] = kept
        assert weights_key(model) == before


def _other_template(processor: Any) -> None:
    processor.chat_template = str(processor.chat_template) + " "


def _other_pixels(processor: Any) -> None:
    processor.image_processor.image_mean = (0.5, 0.5, 0.4)


def _other_frames(processor: Any) -> None:
    processor.video_processor.size = {"longest_edge": 999, "shortest_edge": 512}


def _other_word(processor: Any) -> None:
    processor.tokenizer.add_tokens(["zebra"])


@pytest.mark.parametrize("change", [_other_template, _other_pixels, _other_frames, _other_word])
def test_any_setting_of_the_processor_changes_the_key(change: Callable[[Any], None]) -> None:
    loaded = tiny("qwen3-vl")
    before = template_key(loaded)
    loaded.renderer.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=3)
    assert template_key(loaded) == before == template_key(tiny("qwen3-vl"))
    change(loaded.processor)
    assert template_key(loaded) != before


def test_runs_share_a_folder_and_only_what_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = make_rows(tmp_path, 4), [0]
    score = FirstPass._scored

    def counting(self: FirstPass, batch: PairBatch, of: Sequence[PairRow]) -> Any:
        asked[0] += len(batch.ids)
        return score(self, batch, of)

    monkeypatch.setattr(FirstPass, "_scored", counting)

    def scored(run: str, pairs: Sequence[PairRow] = rows, seed: int = 0, **changes: Any) -> int:
        asked[0] = 0
        config = quick(reference_cache=tmp_path / "shared", **changes)
        trainer(
            tmp_path, pairs, config, loaded=tiny("llama" if not pairs[0].media else "qwen3-vl", seed=seed), run=run
        ).train()
        return asked[0]

    assert scored("a") == 4
    assert scored("b", learning_rate=1e-4, lora=LoraConfig(rank=4), micro_batch_size=1, seed=0) == 0
    assert scored("c", [*rows[1:], replace(rows[0], chosen="A crab.")]) == 1
    assert scored("d", seed=1) == 4, "other weights"
    assert scored("e", precision="bf16") == 4
    assert not list(tmp_path.glob("*/reference"))
