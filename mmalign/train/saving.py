"""What a finished training leaves: the adapter or the model, and what is to be told of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import TrainError
from mmalign.train.atomic import replacing
from mmalign.train.metrics import read_metrics

Kind = Literal["adapter", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training run left: `path` is a PEFT adapter or a whole model, each with its processor.

    `num_pairs` were trained on; `num_dropped` were longer than `max_length`, or had no changed phrase where the
    objective needs one; `last` holds the last step's metrics.
    """

    path: Path
    kind: Kind
    num_pairs: int
    num_dropped: int
    steps: int
    last: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Output:
    """The folder of one run's result. `run_key` names everything that it depends on."""

    folder: Path
    run_key: str

    def save(self, model: Any, processor: Any, kind: Kind, told: dict[str, int]) -> None:
        """Write the weights, and then `told` (pairs and steps), which makes the run a finished one."""
        with replacing(self.folder / kind) as partial:
            options = {"save_embedding_layers": False} if kind == "adapter" else {}
            model.save_pretrained(partial, **options)
            processor.save_pretrained(partial)
        with replacing(self.folder / "result.json") as partial:
            state = {"run_key": self.run_key, "kind": kind, **told}
            partial.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def found(self) -> TrainResult | None:
        """What an earlier call finished. Raises TrainError when that was another run."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.pop("run_key") != self.run_key:
            raise TrainError(
                f"{path}: is the result of other pairs, another model or other settings; train into an empty folder"
            )
        last = read_metrics(self.folder / "metrics.jsonl")[-1]
        return TrainResult(path=self.folder / state["kind"], last=last, **state)
