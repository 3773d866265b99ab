"""Lists of answers, answers in contexts of their own, and pairs that lack one: what batches hold of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.errors import MediaError, TrainError
from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.logps import completion_logps
from tests.models import READING, shared, tiny
from tests.train.sides import alone, asked, carrying, listed
from tests.train.test_shared import assert_equal, measured

NAMES = ("llama", "llava", "qwen3-vl")
SIDES = ("chosen", "rejected", "answers", "judged")


def collator(loaded: Loaded, root: Path, sides: tuple[str, ...] = SIDES) -> Collator:
    return Collator(loaded.renderer, root, MediaLimits(), sides, values=("scores",))


def listed_for(name: str, root: Path) -> list[PairRow]:
    return listed(root, pictures=0 if name in READING else 1)


@pytest.mark.parametrize("shares", [False, True], ids=["rows", "shared"])
@pytest.mark.parametrize("name", NAMES)
def test_every_place_holds_its_answer(name: str, shares: bool, tmp_path: Path) -> None:
    """Log-probs equal those of every answer in a forward of its own, at the place of side, pair and list."""
    loaded, rows = shared(name), listed_for(name, tmp_path)
    batch = replace(collator(loaded, tmp_path), shares=shares)(rows)
    assert (batch.sides, batch.shapes) == (SIDES, ((), (), (3,), ()))
    assert len(batch.mask) == 3 + 3 + 9 + 3
    values = completion_logps(loaded.model, batch)
    for side in SIDES:
        found, mask = batch.laid(side, values), batch.laid(side, batch.mask)
        assert found.shape == (3, *((3,) if side == "answers" else ()), batch.mask.shape[-1])
        for index, row in enumerate(rows):
            part = row.side(side)
            for place, answer in enumerate(part if isinstance(part, tuple) else [part]):
                at = (index, place) if side == "answers" else (index,)
                if answer is None:
                    assert not mask[at].any()
                    continue
                expected = alone(loaded.model, loaded, tmp_path, row, answer)
                assert found[at][mask[at]].tolist() == pytest.approx(expected.tolist(), abs=2e-5)
    assert not batch.laid("answers", batch.mask)[2, 1:].any()


@pytest.mark.parametrize("name", NAMES)
def test_shared_is_separate_with_gradients(name: str, tmp_path: Path) -> None:
    loaded, rows = tiny(name), listed_for(name, tmp_path)
    model = loaded.model.requires_grad_(True)
    plain = collator(loaded, tmp_path)(rows)
    packed = replace(collator(loaded, tmp_path), shares=True)(rows)
    assert torch.equal(plain.mask, packed.mask)
    assert torch.equal(plain.lengths, packed.lengths)
    assert torch.equal(plain.places.labels, packed.places.labels)
    # Contexts: every pair's own, other words about the media of two, and one judgement without any.
    assert len(packed.inputs["input_ids"]) == 3 + (1 if name in READING else 2) + 1
    assert_equal(measured(model, packed), measured(model, plain))


def test_lengths_and_counts_are_of_whole_lists(tmp_path: Path) -> None:
    loaded, rows = shared("llama"), listed_for("llama", tmp_path)
    batch = collator(loaded, tmp_path)(rows)
    one = collator(loaded, tmp_path, ("answers",))
    for index, row in enumerate(rows):
        singles = [one(carried(row, [place])) for place in range(len(list_of(row)))]
        assert batch.counts()[2, index] == sum(int(single.mask.sum()) for single in singles)
        assert batch.lengths[2, index] == max(int(single.lengths.max()) for single in singles)
    assert batch.lengths[3].tolist()[1] == 0
    assert batch.counts()[3].tolist()[1] == 0
    assert batch.counts().sum() == batch.mask.sum()


def list_of(row: PairRow) -> tuple[object, ...]:
    part = row.side("answers")
    assert isinstance(part, tuple)
    return part


def carried(row: PairRow, places: list[int]) -> list[PairRow]:
    """The pair with some of its list's answers only."""
    part = row.side("answers")
    assert isinstance(part, tuple)
    return [replace(row, sides={"answers": tuple(part[place] for place in places)}, values={"scores": (0.5,)})]


def test_values_are_tensors_of_the_lists_shape(tmp_path: Path) -> None:
    loaded, rows = shared("llama"), listed_for("llama", tmp_path)
    rows = [
        replace(
            row,
            gap=float(index),
            values={**row.values, "user": index, "teacher_means": (0.5, None), "own": (1, 2)[:index]},
        )
        for index, row in enumerate(rows, 1)
    ]
    names = ("scores", "gap", "user", "teacher_means", "own")
    batch = replace(collator(loaded, tmp_path), values=names)(rows)
    assert batch.values["scores"].tolist() == [
        pytest.approx([0.2, 0.9, 0.5]),
        pytest.approx([0.2, 0.9, 0]),
        pytest.approx([0.2, 0, 0]),
    ]
    assert batch.values["gap"].tolist() == [1, 2, 3]
    assert batch.values["user"].tolist() == [1, 2, 3]
    assert torch.equal(batch.values["teacher_means"].isnan(), torch.tensor([[False, True]] * 3))
    assert torch.equal(batch.values["own"].isnan(), torch.tensor([[False, True], [False, False], [False, False]]))
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in moved.values.values()} == {"meta"}


def test_lists_of_lists(tmp_path: Path) -> None:
    """At i, j answer j in the context of constitution i, as sami reads them."""
    loaded, row = shared("llama"), listed_for("llama", tmp_path)[0]
    texts, told = ("Yes.", "No. There is a crab."), ("Be brief.", "Be long.")
    grid = [[{"text": text, "context": asked(row, words)} for text in texts] for words in told]
    row = carrying(row, {"answers": grid})
    batch = Collator(loaded.renderer, tmp_path, MediaLimits(), ("answers",), shares=True)([row, row])
    assert batch.shapes == ((2, 2),)
    values = batch.laid("answers", completion_logps(loaded.model, batch))
    assert values.shape[:3] == (2, 2, 2)
    part = row.side("answers")
    assert isinstance(part, tuple)
    for i, line in enumerate(part):
        assert isinstance(line, tuple)
        for j, answer in enumerate(line):
            expected = alone(loaded.model, loaded, tmp_path, row, answer)  # type: ignore[arg-type]
            assert values[1, i, j][: len(expected)].tolist() == pytest.approx(expected.tolist(), abs=2e-5)


def test_spans_of_further_answers_are_marked(tmp_path: Path) -> None:
    loaded, row = shared("llama"), listed_for("llama", tmp_path)[0]
    row = carrying(row, {"answers": [{"text": "Yes."}, {"text": "a red boat.", "spans": [[2, 5]]}]}, {"scores": [1, 0]})
    batch = collator(loaded, tmp_path, ("chosen", "answers"))([row])
    marked = batch.laid("answers", batch.changed)[0]
    assert not marked[0].any()
    labels = loaded.renderer.token_ids("a red boat.")
    words = [loaded.renderer.tokenizer.decode(token) for token, is_in in zip(labels, marked[1], strict=False) if is_in]
    assert "".join(words).strip() == "red"


def test_a_bad_answer_of_a_list_is_named_by_its_place(tmp_path: Path) -> None:
    loaded, row = shared("llama"), listed_for("llama", tmp_path)[0]
    row = carrying(row, {"answers": [{"text": "Yes."}, {"text": "No.<|end|>"}]}, {"scores": [1, 0]})
    with pytest.raises(TrainError, match=r"pair s0#0\.0, answers\[1\]: .*<\|end\|>"):
        collator(loaded, tmp_path, ("chosen", "answers"))([row])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("crop", r"0-0\.png: what is on record of it cannot be done again \(KeyError: 'area'\)"),
        ("crp", "unknown corruption 'crp'"),
    ],
)
def test_damage_of_ones_own_that_cannot_be_done_is_named(name: str, told: str, tmp_path: Path) -> None:
    loaded, row = shared("llava"), listed_for("llava", tmp_path)[0]
    wrong = asked(row, "Look.")
    wrong[0]["content"][0] = {**wrong[0]["content"][0], "corruptions": [{"name": name, "params": {}}]}
    row = carrying(row, {"chosen_damaged": {"text": "x", "context": wrong}})
    with pytest.raises(MediaError, match=rf"pair s0#0\.0: {told}") as caught:
        Collator(loaded.renderer, tmp_path, MediaLimits(), ("chosen", "chosen_damaged"))([row])
    assert "\n" not in str(caught.value)


def test_unknown_side(tmp_path: Path) -> None:
    batch: PairBatch = collator(shared("llama"), tmp_path, ("chosen",))(listed_for("llama", tmp_path))
    with pytest.raises(ValueError, match="tuple"):
        batch.rows_of("rejected")
