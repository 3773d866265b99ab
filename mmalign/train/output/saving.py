"""What a finished training leaves: the adapter or the model, and what is to be told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.atomic import replacing
from mmalign.errors import TrainError
from mmalign.train.distributed.whole import own_class
from mmalign.train.logprobs.head import unwrapped
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


@dataclass(frozen=True, slots=True)
class Types:
    """The number types that a model came in, by the names of its weights.

    Training holds what it changes in float32. A whole model is handed back in its own types, so that what is measured
    before and after differs by training alone.
    """

    of: dict[str, torch.dtype]

    @classmethod
    def found(cls, model: nn.Module) -> Types:
        """Those of a model, its adapter counted out."""
        names = ((name, parameter.dtype) for name, parameter in model.named_parameters())
        return cls({name.removeprefix("base_model.model.").replace(".base_layer.", "."): kind for name, kind in names})

    def restore(self, model: nn.Module, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Round the model in place, or `weights`, where those are the whole ones, into new ones; tied ones stay so."""
        if weights is None:
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.to(self.of.get(name, parameter.dtype))
            return None
        rounded: dict[int, Tensor] = {}
        for name, weight in weights.items():
            rounded.setdefault(id(weight), weight.to(self.of.get(name, weight.dtype)))
        return {name: rounded[id(weight)] for name, weight in weights.items()}


@dataclass(frozen=True, kw_only=True)
class Output:
    """The folder of one run's result. `run_key` names everything that it depends on."""

    folder: Path
    run_key: str

    def save(
        self,
        model: Any,
        processor: Any,
        kind: Kind,
        told: dict[str, int],
        weights: dict[str, Tensor] | None = None,
        *,
        beside: Callable[[Path], Any] = lambda folder: None,
    ) -> None:
        """Write the weights, and then `told` (pairs and steps), which makes the run a finished one.

        `weights` are the whole ones by name, where the model holds a part of them only. `beside` writes what else is to
        lie in their folder.
        """
        with replacing(self.folder / kind) as partial:
            options: dict[str, Any] = {"save_embedding_layers": False} if kind == "adapter" else {}
            # What is given is taken out again, shard by shard.
            kinds = [weight.dtype for weight in (weights or {}).values() if weight.is_floating_point()]
            with own_class(unwrapped(model)):
                model.save_pretrained(partial, state_dict=weights, **options)
            if kinds and kind == "model":
                model.config.dtype = kinds[0]
                model.config.save_pretrained(partial)
            processor.save_pretrained(partial)
            beside(partial)
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
