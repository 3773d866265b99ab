"""What a person sees of a training: a line with rate, numbers and time to go, and the same numbers in a tracker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from accelerate.tracking import TensorBoardTracker

from mmalign.errors import TrainError
from mmalign.objectives import DPO
from mmalign.train import progress
from mmalign.train.progress import Meter, ProgressLine, clock, note_of
from mmalign.train.trackers import refuse_unknown, settings_of
from tests.train.rows import make_rows, quick
from tests.train.runs import curve, trainer
from tests.train.test_resume import Stopping


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_line_tells_rate_numbers_and_time_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock_, values = Clock(monkeypatch), {"loss": 0.69314, "margin": 0.125, "accuracy": 1.0, "lr": 1e-4}
    speed = {"tokens_per_second": 1234.4, "peak_memory_gb": 2.26, "step_seconds": 2.0}
    with ProgressLine("training", 10_000, 40, unit="steps") as line:
        for _ in range(20):
            clock_.now += 2
            line.advance(note=note_of(values, speed))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"training: {done} of 10000 steps, 0.50 steps/s loss 0.6931, margin 0.125, accuracy 1, 1234 tokens/s, 2.3 GB, "
        f"{left} to go"
        for done, left in ((48, "5:31:44"), (56, "5:31:28"))
    ]


def test_what_an_objective_does_not_log_is_left_out() -> None:
    speed = {"tokens_per_second": 5.0, "peak_memory_gb": 0.04}
    assert note_of({"loss": 2.0, "nll": 1.0}, speed) == "loss 2, 5 tokens/s, 0.0 GB"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")])
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_meter_counts_from_step_to_step_and_keeps_the_most_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([3_000_000_000, 1_000_000_000])

    class Process:
        def memory_info(self) -> Process:
            self.rss = next(held)
            return self

    monkeypatch.setattr(progress.psutil, "Process", Process)
    clock_ = Clock(monkeypatch)
    meter = Meter(torch.device("cpu"))
    clock_.now += 4
    assert meter.step(100) == {"step_seconds": 4.0, "tokens_per_second": 25.0, "peak_memory_gb": 3.0}
    clock_.now += 1
    assert meter.step(100) == {"step_seconds": 1.0, "tokens_per_second": 100.0, "peak_memory_gb": 3.0}


def test_trackers_are_told_of_an_end_that_was_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    ended: list[str] = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda self: ended.append(self.name))
    rows, config = make_rows(tmp_path, 3), quick(batch_size=2, epochs=2, report_to=("tensorboard",))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, config, Stopping(calls=[], at=2)).train()
    assert ended == ["tensorboard"]


def test_tensorboard_gets_every_number_of_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, make_rows(tmp_path, 3), quick(batch_size=2, epochs=2, report_to=("tensorboard",))).train()
    lines = curve(tmp_path)
    folder = tmp_path / "run" / "mmalign"
    events = EventAccumulator(str(folder))
    events.Reload()
    names = set(lines[0]) - {"step"}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    speed = events.Scalars("tokens_per_second")
    assert [event.step for event in speed] == [1, 2, 3, 4]
    assert all(event.value > 0 for event in (*speed, *events.Scalars("peak_memory_gb")))
    # The run's own file holds nothing that differs from machine to machine.
    assert not {"tokens_per_second", "step_seconds", "peak_memory_gb"} & set(lines[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", r"train\.report_to: tensorbord is no tracker, did you mean tensorboard\? \(known are .*wandb"),
        ("clipboard", r"train\.report_to: clipboard is no tracker"),
        ("aim", r"train\.report_to: the package of aim is not installed; of the trackers there are \w+"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.train.trackers.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(TrainError, match=message) as caught:
        refuse_unknown(["tensorboard", name])
    assert "\n" not in str(caught.value)


def test_a_tracker_is_told_settings_as_plain_values() -> None:
    told = settings_of(DPO(beta=0.3), quick())
    assert told["objective"].startswith("DPO(beta=0.3")
    assert told["batch_size"] == 4
    assert all(isinstance(value, bool | int | float | str) for value in told.values())
