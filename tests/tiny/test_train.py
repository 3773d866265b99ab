"""Training goes on where it stopped, and its steps do what the plan says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.tiny import lessons, train
from mmalign.tiny.train import Plan, rate, step_kind

SMALL = Plan(vision_steps=2, steps=3, early=1, clips_from=3)


@pytest.fixture
def quick(monkeypatch):
    """Small batches, made in this process, and no measuring at the end."""
    small = lessons.Shape(2, 128)
    monkeypatch.setattr(train, "vision_batch", lambda plan, step: lessons.dense_batch(plan.seed, step, 4))
    monkeypatch.setattr(train, "language_batch", lambda plan, step: lessons.picture_batch(plan.seed, step, small))
    monkeypatch.setattr(train, "ahead", lambda make, begin, end: ((step, make(step)) for step in range(begin, end)))
    monkeypatch.setattr(train, "finish", lambda plan, out: None)
    return monkeypatch


def test_a_stopped_run_ends_with_the_weights_of_an_unbroken_one(quick, tmp_path: Path):
    train.train(SMALL, tmp_path / "whole", every=1)
    descend = train.descend
    done = []

    def stop_at_the_fifth(*args):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(descend(*args))

    quick.setattr(train, "descend", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train.train(SMALL, tmp_path / "broken", every=1)
    quick.setattr(train, "descend", descend)
    train.train(SMALL, tmp_path / "broken", every=1)
    whole, broken = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_another_plan_does_not_go_on_in_the_same_folder(quick, tmp_path: Path):
    train.train(SMALL, tmp_path, every=1)
    with pytest.raises(ValueError, match="another plan"):
        train.train(Plan(), tmp_path)


def test_the_learning_rate_warms_up_holds_and_falls():
    plan = Plan()
    rates = [rate(plan, step, 1000, plan.hold) for step in range(1000)]
    assert rates[0] < 0.1
    assert rates[299] == 1
    assert rates[-1] == pytest.approx(plan.floor, abs=0.001)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_clips_come_later_and_pictures_stay():
    plan = Plan()
    kinds = [step_kind(plan, step) for step in range(plan.steps)]
    assert set(kinds[: plan.early]) == {"early"}
    assert not any(kind.startswith("clip") for kind in kinds[: plan.clips_from])
    assert 0.4 < sum(kind.startswith("clip") for kind in kinds) / len(kinds) < 0.6


def test_the_producing_process_hands_over_batches_in_order():
    assert list(train.ahead(abs, 3, 8)) == [(step, step) for step in range(3, 8)]
