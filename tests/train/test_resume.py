"""A run that is interrupted anywhere goes on to the same end, and never into another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmalign import atomic
from mmalign.errors import TrainError
from mmalign.objectives import DPO, LossInputs, LossOutput, Need, Objective
from mmalign.train.config import LoraConfig
from mmalign.train.output.checkpoint import Checkpoints
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, trainer


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """An objective that is killed at its n-th call; with the same name and settings as one that is not."""

    name: ClassVar[str] = "dpo"
    calls: list[int]
    at: int | None = None
    inner: Objective = field(default_factory=DPO)

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def needs(self) -> frozenset[Need]:
        return self.inner.needs

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        self.calls.append(1)
        if len(self.calls) == self.at:
            raise KeyboardInterrupt
        return self.inner(inputs)


RESUMED = quick(
    epochs=4,
    batch_size=2,
    checkpoint_every_steps=3,
    schedule="cosine",
    warmup_ratio=0.2,
    lora=LoraConfig(dropout=0.2),
)


@pytest.mark.parametrize("lora", [LoraConfig(dropout=0.2), None], ids=["lora", "full"])
@pytest.mark.parametrize("killed_at", [1, 3, 4, 8, 12])
def test_a_killed_run_goes_on_to_the_same_end(killed_at: int, lora: LoraConfig | None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    config = replace(RESUMED, lora=lora)
    trainer(tmp_path, rows, config, Stopping(calls=[]), run="whole").train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, config, Stopping(calls=[], at=killed_at)).train()
    calls: list[int] = []
    torch.manual_seed(99)
    trainer(tmp_path, rows, config, Stopping(calls=calls)).train()
    assert len(calls) == 12 - (killed_at - 1) // 3 * 3, "steps before the checkpoint are not run again"
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("unfinished", ["weights.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("second", [False, True])
def test_a_checkpoint_killed_in_writing_is_ignored(
    unfinished: str, second: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tmp_path, 6)
    trainer(tmp_path, rows, RESUMED, run="whole").train()
    _kill_when_writing(unfinished, monkeypatch, second=second)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, RESUMED).train()
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ([".partial-step-00000006", "step-00000003"] if second else [".partial-step-00000003"])
    assert (tmp_path / "run" / "checkpoints" / left[0] / unfinished).read_bytes() == b"half"
    trainer(tmp_path, rows, RESUMED).train()
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000009", "step-00000012"]


def _kill_when_writing(name: str, monkeypatch: pytest.MonkeyPatch, *, second: bool) -> None:
    """Die half-way through the first, or the second, file called `name`."""
    seen: list[Path] = []

    def dying(original: Callable[..., Any], path_at: int) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            given = args[path_at]
            path = given if isinstance(given, Path) else Path(getattr(given, "name", given))
            if path.name == name:
                seen.append(path)
                if len(seen) == 1 + second:
                    path.write_bytes(b"half")
                    monkeypatch.setattr(atomic, "discard", lambda path: None)  # the dead clear nothing away
                    raise KeyboardInterrupt
            return original(*args, **kwargs)

        return write

    monkeypatch.setattr("mmalign.train.output.checkpoint.save_file", dying(_original("save_file"), 1))
    monkeypatch.setattr(torch, "save", dying(torch.save, 1))
    monkeypatch.setattr(Path, "write_text", dying(Path.write_text, 0))


def _original(name: str) -> Callable[..., Any]:
    from mmalign.train.output import checkpoint

    found: Callable[..., Any] = getattr(checkpoint, name)
    return found


def test_a_run_goes_on_with_fewer_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer, drawn = torch.optim.AdamW(model.parameters()), torch.arange(16, dtype=torch.uint8)
    set_to: list[torch.Tensor] = []

    def of_all(states: list[torch.Tensor]) -> None:
        if len(states) > 1:
            raise IndexError  # as torch does for one that is not there

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: drawn)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [drawn] * 8)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_to.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", of_all)
    checkpoints = Checkpoints(folder=tmp_path, run_key="run", keep=1)
    checkpoints.save(3, model, optimizer)
    assert checkpoints.resume(model, optimizer) == 3
    assert [state.tolist() for state in set_to] == [drawn.tolist()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkpoints.resume(model, optimizer) == 3
    assert len(set_to) == 1


def test_a_finished_run_is_handed_back(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 4)
    first = trainer(tmp_path, rows, quick()).train()
    stamp = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = trainer(tmp_path, rows, replace(quick(), micro_batch_size=4), DPO(beta=0.2))
    with pytest.raises(TrainError, match="other pairs, another model or other settings"):
        again.train()
    assert trainer(tmp_path, rows, replace(quick(), micro_batch_size=4)).train() == first
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["rows", "rate", "model", "objective"])
def test_a_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, RESUMED, Stopping(calls=[], at=8)).train()
    changed = {
        "rows": lambda: trainer(tmp_path, [replace(rows[0], weight=3.0), *rows[1:]], RESUMED, DPO()),
        "rate": lambda: trainer(tmp_path, rows, replace(RESUMED, learning_rate=0.5), DPO()),
        "model": lambda: trainer(tmp_path, rows, RESUMED, DPO(), loaded=tiny("qwen3-vl", seed=1)),
        "objective": lambda: trainer(tmp_path, rows, RESUMED, DPO(beta=0.2)),
    }
    with pytest.raises(TrainError, match="step-00000006: belongs to a run with other pairs"):
        changed[change]().train()
