"""Losses through the collator equal those of the objective on tensors made by hand, one answer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import OBJECTIVES, LossInputs, Objective
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.needs import prepared
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.step import StepTotals, loss_inputs, reference_sides_of, sides_of, values_of
from tests.models import READING, tiny
from tests.train.rows import make_rows
from tests.train.sides import asked, by_hand, carrying

TEXTS = ("There is a crab.", "Yes.", "There is a red boat on the left.", "one two.")
OBJECTIVE_NAMES = (
    "lipo",
    "pro",
    "knowpat",
    "rrhf",
    "steerlm",
    "srpo",
    "mdpo",
    "tpo",
    "sppo",
    "mm_dpo",
    "kto",
    "cut",
    "d2o",
    "rationale_dpo",
    "scir",
    "mapl",
    "poft",
)


def rich(root: Path, count: int = 3, *, pictures: int = 1) -> list[PairRow]:
    """Pairs that carry all that the objectives above read: lists of 4, 3, 2 answers, contexts, numbers."""
    found = []
    for index, row in enumerate(make_rows(root, count, pictures=pictures)):
        size = 4 - index % 3
        told = {"text": row.chosen, "context": asked(row, "It was wrong.")}
        sides: dict[str, Any] = {
            "answers": [{"text": text, "context": None} for text in TEXTS[:size]],
            "samples": [{"text": text, "context": None} for text in TEXTS[1:size]],
            "gold": {"text": TEXTS[index % 4]},
            "chosen_damaged": None
            if index == 1
            else {"text": row.chosen, "context": asked(row, "x", with_media=False)},
            "judged": told,
            "rationale": None if index == 2 else {"text": "It is blue.", "context": asked(row, "Why?")},
            "verdict_chosen": [{"text": "A", "context": asked(row, f"{n}?", with_media=False)} for n in (1, 2)],
            "verdict_rejected": [{"text": "B", "context": asked(row, f"{n}?", with_media=False)} for n in (1, 2)],
            "fulfilled": told,
            "missed": {"text": row.chosen, "context": asked(row, "Be long.")},
            "chosen_favoured": told,
            "rejected_favoured": {"text": row.rejected, "context": asked(row, "It was wrong.")},
        }
        numbers = {
            name: [0.3, 0.9, 0.1, 0.5][:size] for name in ("scores", "log_attributes", "log_prior", "log_proposal")
        }
        numbers |= {"chosen_win_rate": 0.75, "rejected_win_rate": 0.2 * index}
        row = carrying(row, sides, {**numbers, "teacher_means": [-3.0, None, -2.0]})
        found.append(replace(row, gap=0.5 * index, p=1 - 0.1 * index))
    return found


def through(
    loaded: Loaded, reference: nn.Module, root: Path, rows: Sequence[PairRow], objective: Objective, *, shares: bool
) -> tuple[LossInputs, PairBatch]:
    collate = Collator(loaded.renderer, root, MediaLimits(), sides_of(objective, rows), shares, values_of(objective))
    batch = collate(rows)
    with torch.no_grad():
        frozen = completion_logps(reference, batch)
    told = loss_inputs(batch, completion_logps(loaded.model, batch), frozen, scored=reference_sides_of(objective))
    return told, batch


def gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_losses_are_those_of_every_answer_alone(name: str, tmp_path: Path) -> None:
    loaded, reference, objective = tiny("llama"), tiny("llama", seed=1).model, OBJECTIVES[name]()
    loaded.model.requires_grad_(True)
    rows = prepared(rich(tmp_path, pictures=0), objective, TrainConfig())
    wanted = objective(by_hand(loaded, reference, tmp_path, rows, objective))
    told, batch = through(loaded, reference, tmp_path, rows, objective, shares=True)
    found = objective(told)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=2e-5, atol=2e-5)
    assert found.pooled.keys() == wanted.pooled.keys()
    for side, values in wanted.pooled.items():
        torch.testing.assert_close(found.pooled[side], values, rtol=2e-5, atol=2e-5)
    for key, values in wanted.metrics.items():
        torch.testing.assert_close(found.metrics[key], values, rtol=1e-4, atol=1e-4)
    totals = StepTotals(len(rows), dict(zip(batch.sides, batch.counts().sum(-1).tolist(), strict=True)))
    ones = torch.ones(len(rows))
    one, other = (gradient(loaded.model, totals.loss(output, ones)) for output in (found, wanted))
    largest = max(float(value.abs().max()) for value in other.values())
    for part, value in other.items():
        assert (one[part] - value).abs().max() <= 2e-5 * largest, part


@pytest.mark.parametrize("name", ["lipo", "mdpo", "srpo"])
@pytest.mark.parametrize("model", ["llava", "qwen3-vl"])
def test_with_pictures(model: str, name: str, tmp_path: Path) -> None:
    loaded, reference, objective = tiny(model), tiny(model, seed=1).model, OBJECTIVES[name]()
    rows = prepared(rich(tmp_path, 2, pictures=int(model not in READING)), objective, TrainConfig())
    with torch.no_grad():
        wanted = objective(by_hand(loaded, reference, tmp_path, rows, objective)).loss
        for shares in (False, True):
            told, _ = through(loaded, reference, tmp_path, rows, objective, shares=shares)
            torch.testing.assert_close(objective(told).loss, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["lipo", "cut", "tpo", "rrhf", "rationale_orpo"])
def test_micro_batches_add_up_to_the_big_batch(name: str, tmp_path: Path) -> None:
    """Lists of other lengths, and other widths of tokens, in every micro-batch."""
    loaded, reference, objective = tiny("llama"), tiny("llama", seed=1).model, OBJECTIVES[name]()
    loaded.model.requires_grad_(True)
    rows = prepared(rich(tmp_path, pictures=0), objective, TrainConfig())
    whole, batch = through(loaded, reference, tmp_path, rows, objective, shares=True)
    totals = StepTotals(len(rows), dict(zip(batch.sides, batch.counts().sum(-1).tolist(), strict=True)))
    weight = torch.tensor([row.weight for row in rows])
    wanted = gradient(loaded.model, totals.loss(objective(whole), weight))
    parts = [rows[:1], rows[1:]]
    losses = []
    for part in parts:
        told, _ = through(loaded, reference, tmp_path, part, objective, shares=True)
        losses.append(totals.loss(objective(told), torch.tensor([row.weight for row in part])))
    found = gradient(loaded.model, sum(losses[1:], losses[0]))
    largest = max(float(value.abs().max()) for value in wanted.values())
    for part_name, value in wanted.items():
        assert (found[part_name] - value).abs().max() <= 1e-5 * largest, part_name


def test_only_the_sides_of_the_objective_are_collated(tmp_path: Path) -> None:
    rows = rich(tmp_path, pictures=0)
    assert sides_of(OBJECTIVES["tpo"](), rows) == ("chosen", "rejected", "gold")
    assert sides_of(OBJECTIVES["lipo"](), rows) == ("answers",)
    assert reference_sides_of(OBJECTIVES["rationale_dpo"]()) == ("chosen", "rejected")
    assert reference_sides_of(OBJECTIVES["d2o"]()) == ("rejected", "samples")
    assert reference_sides_of(OBJECTIVES["pro"]()) == ()
    told = carrying(rows[0], {"no_history": {"text": rows[0].chosen}})
    assert sides_of(OBJECTIVES["next_quill"](), [told]) == ("chosen", "no_history")
    assert sides_of(OBJECTIVES["next_quill"](), rows) == ("chosen",)


def test_a_reference_that_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    loaded = tiny("llama")
    objective = OBJECTIVES["rationale_dpo"]()
    rows = prepared(rich(tmp_path, pictures=0), objective, TrainConfig())
    told, _ = through(loaded, loaded.model, tmp_path, rows, objective, shares=False)
    assert told.chosen.reference.shape == told.chosen.mask.shape
    with pytest.raises(ValueError, match="reference log-probs"):
        _ = told.side("rationale").reference
