"""Checkpoints: everything that a run needs to go on exactly, in one folder per step.

A folder `step-00000050` holds `weights.safetensors` (the weights being trained), `optimizer.pt` and one
`random-<rank>.pt` per rank (both read with `weights_only`), `beside.safetensors` where the objective has a memory or a
head, and `state.json`. Weights and optimizer are whole and by
name, however the ranks shared them. The order of pairs and the learning rate follow from the step, so they need no
state of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmalign.atomic import PREFIX, discard, replacing, sweep
from mmalign.errors import TrainError
from mmalign.train.distributed.whole import load_optimizer_state, load_weights, optimizer_state, trained_weights


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run. `run_key` names everything that the result depends on."""

    folder: Path
    run_key: str
    keep: int
    rank: int = 0
    wait: Callable[[], Any] = lambda: None

    def save(self, step: int, model: nn.Module, optimizer: Any, beside: Mapping[str, Tensor] | None = None) -> None:
        """Keep the state after `step` optimizer steps, then remove the oldest beyond `keep`. All ranks call this.

        `beside` is what the run keeps beside the model's weights, the same on all ranks.
        """
        path = self.folder / f"step-{step:08d}"
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            with replacing(path) as partial:
                partial.mkdir()
                self.wait()
                save_file(trained_weights(model), partial / "weights.safetensors")
                _save(optimizer_state(model, optimizer), partial / "optimizer.pt")
                _save(_random_state(), partial / "random-0.pt")
                if beside:
                    save_file(dict(beside), partial / "beside.safetensors")
                state = {"step": step, "run_key": self.run_key}
                (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
                self.wait()
            for old in self.found()[: -self.keep]:
                discard(old)
        else:
            self.wait()
            trained_weights(model, kept=False)
            optimizer_state(model, optimizer, kept=False)
            _save(_random_state(), path.with_name(f"{PREFIX}{path.name}") / f"random-{self.rank}.pt")
            self.wait()
        self.wait()

    def found(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def beside(self) -> dict[str, Tensor]:
        """What the newest checkpoint keeps beside the model's weights; empty where there is none."""
        path = self.found()[-1] / "beside.safetensors" if self.found() else None
        return load_file(path) if path is not None and path.exists() else {}

    def resume(self, model: nn.Module, optimizer: Any) -> int:
        """Load the newest checkpoint into model and optimizer; the number of steps it is worth, 0 when there is none.

        Raises TrainError when it belongs to a run with other pairs, weights or settings.
        """
        if self.rank == 0:
            sweep(self.folder)
        if not (found := self.found()):
            return 0
        path = found[-1]
        told = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if told["run_key"] != self.run_key:
            raise TrainError(
                f"{path}: belongs to a run with other pairs, another model or other settings; "
                "go back to those, or train into an empty folder"
            )
        load_weights(model, load_file(path / "weights.safetensors"))
        state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        load_optimizer_state(model, optimizer, state)
        if (kept := path / f"random-{self.rank}.pt").exists():
            # A run that goes on with more ranks has none for the new ones; only adapter dropout draws from it.
            random = torch.load(kept, weights_only=True)
            torch.set_rng_state(random["cpu"])
            if random["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(random["cuda"])
        return int(told["step"])


def _save(state: Any, path: Path) -> None:
    with path.open("wb") as stream:  # given a path, torch says nothing of what the system said
        torch.save(state, stream)


def _random_state() -> dict[str, Any]:
    """Of this rank's own accelerator only: a run may go on where there are fewer of them."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
