"""Checkpoints: everything that a run needs to go on exactly, in one folder per step.

A folder `step-00000050` holds `weights.safetensors` (the weights being trained), `optimizer.pt` and one
`random-<rank>.pt` per rank (both read with `weights_only`), and `state.json`. The order of pairs and the learning rate
follow from the step, so they need no state of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmalign.errors import TrainError
from mmalign.train.atomic import PREFIX, discard, replacing, sweep


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run. `run_key` names everything that the result depends on."""

    folder: Path
    run_key: str
    keep: int
    rank: int = 0
    wait: Callable[[], Any] = lambda: None

    def save(self, step: int, model: nn.Module, optimizer: Any) -> None:
        """Keep the state after `step` optimizer steps, then remove the oldest beyond `keep`. All ranks call this."""
        path = self.folder / f"step-{step:08d}"
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            with replacing(path) as partial:
                partial.mkdir()
                self.wait()
                save_file(trained_weights(model), partial / "weights.safetensors")
                torch.save(optimizer.state_dict(), partial / "optimizer.pt")
                torch.save(_random_state(), partial / "random-0.pt")
                state = {"step": step, "run_key": self.run_key}
                (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
                self.wait()
            for old in self.found()[: -self.keep]:
                discard(old)
        else:
            self.wait()
            torch.save(_random_state(), path.with_name(f"{PREFIX}{path.name}") / f"random-{self.rank}.pt")
            self.wait()
        self.wait()

    def found(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def resume(self, model: nn.Module, optimizer: Any) -> int:
        """Load the newest checkpoint into model and optimizer; the number of steps it is worth, 0 when there is none.

        Raises TrainError when it belongs to a run with other pairs, weights or settings.
        """
        if not (found := self.found()):
            return 0
        path = found[-1]
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["run_key"] != self.run_key:
            raise TrainError(
                f"{path}: belongs to a run with other pairs, another model or other settings; "
                "go back to those, or train into an empty folder"
            )
        weights = load_file(path / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
        if (kept := path / f"random-{self.rank}.pt").exists():
            # A run that goes on with more ranks has none for the new ones; only adapter dropout draws from it.
            random = torch.load(kept, weights_only=True)
            torch.set_rng_state(random["cpu"])
            if random["cuda"]:
                torch.cuda.set_rng_state_all(random["cuda"])
        return int(state["step"])


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
