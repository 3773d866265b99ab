"""Memories and heads: the same however a step is cut up and a run interrupted; what compares whole steps gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import TrainError
from mmalign.objectives import Objective, Sum
from mmalign.objectives.noisy import LCPO, Selfie
from mmalign.objectives.pairwise import AOT, KTO
from mmalign.objectives.reward import CRM, MORE, PAL, ArmoRM, BradleyTerry
from mmalign.train.config import LoraConfig
from mmalign.train.schedule import micro_batch_size
from tests.models import tiny
from tests.train.every import rows_for
from tests.train.rows import quick
from tests.train.runs import assert_same_curve, curve, numbers, trainer
from tests.train.test_resume import Stopping as Dying

#: Two steps of three pairs and two, twice over.
CONFIG = quick(batch_size=3, micro_batch_size=3, epochs=2, checkpoint_every_steps=1, learning_rate=3e-3)
REMEMBERING = LCPO(annotators=2, rate=0.5)
SCORING = PAL(dimension=8, bound=0.5)


class Stopping(Dying):
    """Killed at its n-th call, with all that the objective has beside its needs."""

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def run(root: Path, objective: Objective, name: str = "run", **changes: object) -> None:
    rows = rows_for(objective, root, count=5)
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    trainer(root, rows, config, objective, loaded=tiny("llama"), run=name).train()


@pytest.mark.parametrize(
    "objective",
    [REMEMBERING, Selfie(window=2, warmup=0.5), SCORING, BradleyTerry(), Sum.of((0.5, REMEMBERING), (0.5, SCORING))],
    ids=lambda objective: objective.name,
)
def test_micro_batches_change_nothing(objective: Objective, tmp_path: Path) -> None:
    run(tmp_path, objective, "one")
    run(tmp_path, objective, "other", micro_batch_size=1)
    assert_same_curve(numbers(tmp_path, "one"), numbers(tmp_path, "other"), 1e-4)
    ends = [load_file(tmp_path / name / "checkpoints/step-00000004/beside.safetensors") for name in ("one", "other")]
    assert ends[0].keys() == ends[1].keys()
    assert ends[0]
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key} {text}")


@pytest.mark.parametrize(
    "objective",
    [REMEMBERING, Selfie(window=2, warmup=0.0), MORE(), CRM(), SCORING, ArmoRM(width=8)],
    ids=lambda objective: objective.name,
)
@pytest.mark.parametrize("killed_at", [2, 4])
def test_a_killed_run_goes_on_to_the_same_end(objective: Objective, killed_at: int, tmp_path: Path) -> None:
    lora = LoraConfig(dropout=0.2)
    run(tmp_path, objective, "whole", lora=lora)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stopping(calls=[], at=killed_at, inner=objective), lora=lora)
    torch.manual_seed(9)
    again = Stopping(calls=[], inner=objective)
    run(tmp_path, again, lora=lora)
    assert len(again.calls) == 5 - killed_at
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)
    end = Path("checkpoints/step-00000004/beside.safetensors")
    if (tmp_path / "whole" / end).exists():
        found, expected = load_file(tmp_path / "run" / end), load_file(tmp_path / "whole" / end)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_memory_steers_the_loss(tmp_path: Path) -> None:
    """What the second step leaves, when margins have come to differ, makes another third one."""
    run(tmp_path, REMEMBERING, "with")
    run(tmp_path, replace(REMEMBERING, rate=0.0), "without")
    losses = [[line["loss"] for line in curve(tmp_path, name)] for name in ("with", "without")]
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-6)
    assert losses[0][2] != pytest.approx(losses[1][2], abs=1e-5)


def test_a_penalty_counts_once_a_step(tmp_path: Path) -> None:
    rows = rows_for(SCORING, tmp_path, count=4)
    losses = {}
    for bound in (0.5, 1e3):
        for size in (1, 4):
            config = quick(micro_batch_size=size)
            made = trainer(
                tmp_path, rows, config, replace(SCORING, bound=bound), loaded=tiny("llama"), run=f"{bound}-{size}"
            )
            assert made.reward_head is not None
            fine = made.reward_head.penalty()
            assert fine is not None
            made.train()
            losses[bound, size] = curve(tmp_path, f"{bound}-{size}")[0]["loss"]
            if bound < 1:
                expected = fine.item()
    assert expected > 0.1
    for size in (1, 4):
        assert losses[0.5, size] - losses[1e3, size] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("objective", [AOT(), KTO()], ids=lambda objective: objective.name)
def test_what_compares_pairs_gets_the_whole_step(objective: Objective, tmp_path: Path) -> None:
    for name, size in (("one", 3), ("other", 1)):
        counting = Stopping(calls=[], inner=objective)
        run(tmp_path, counting, name, micro_batch_size=size)
        assert len(counting.calls) == 4
    assert_same_curve(numbers(tmp_path, "one"), numbers(tmp_path, "other"), 1e-4)


def test_a_whole_step_is_one_forward_on_one_rank() -> None:
    config = quick(batch_size=6, micro_batch_size=2)
    assert micro_batch_size(BradleyTerry(), config, ["", "image"], 2) == 2
    assert micro_batch_size(AOT(), config, ["image", "image"], 1) == 6
    with pytest.raises(TrainError, match=r"^objective aot compares all pairs of a step .* one process.* instead of 2$"):
        micro_batch_size(AOT(), config, ["image"], 2)
    with pytest.raises(
        TrainError, match=r"^objective aot .* media of several kinds \(text, image\); train on one kind$"
    ):
        micro_batch_size(AOT(), config, ["image", ""], 1)
