"""Reward-model heads: trained beside the model, saved with it, loaded again.

A head is small and stands outside the model that ranks wrap and shard: every rank has all of it, and its gradients are
averaged once per step. `head.safetensors` and `head.json` lie in the folder of the adapter, or the model, that it was
trained with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmalign.errors import TrainError
from mmalign.objectives import LossInputs, Objective, Scoring
from mmalign.objectives.heads import HEADS
from mmalign.pairs import PairRow
from mmalign.sides import laid_out, shape_of
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import PairBatch
from mmalign.train.distributed.whole import load_optimizer_state, optimizer_state
from mmalign.train.logprobs.head import Head, unwrapped
from mmalign.train.logprobs.logps import Read

WEIGHTS, ABOUT = "head.safetensors", "head.json"
#: By head the argument that is counted in the pairs, and the value that it is counted in.
COUNTED: Final = {
    "attributes": ("count", "attributes"),
    "gated": ("count", "attributes"),
    "degree": ("count", "degrees"),
    "ideal_point": ("users", "user"),
}


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Which head of `mmalign.objectives.heads`, and its arguments as plain numbers."""

    name: str
    settings: Mapping[str, float]

    @classmethod
    def of(cls, objective: Objective, rows: Sequence[PairRow], size: int) -> HeadSpec | None:
        """The head that `objective` needs for states of `size` numbers; None where it needs none.

        Raises TrainError for one that is not known, and for two.
        """
        names = sorted(need.partition(":")[2] for need in objective.needs if need.startswith("head:"))
        if not names:
            return None
        if len(names) > 1 or names[0] not in HEADS:
            raise TrainError(
                f"objective {objective.name} needs the heads {', '.join(names)}; a run trains one of {', '.join(HEADS)}"
            )
        settings: dict[str, float] = {"size": size}
        if names[0] in COUNTED:
            key, value = COUNTED[names[0]]
            settings[key] = _count(rows, value)
        return cls(names[0], settings | dict(objective.head if isinstance(objective, Scoring) else {}))

    def build(self) -> nn.Module:
        """The head with new weights, in float32; a gate's attributes are zeros until they are fitted or loaded."""
        settings: dict[str, Any] = dict(self.settings)
        if self.name == "gated":
            count, size = settings.pop("count"), settings.pop("size")
            settings["verbose"] %= count
            settings = {"weights": torch.zeros(count, size), "penalty": torch.zeros(count), **settings}
        return HEADS[self.name](**settings)


class RewardHead:
    """A head that is trained: its module on `device`, its optimizer, and what a checkpoint keeps of both."""

    def __init__(self, spec: HeadSpec, device: torch.device, weight_decay: float = 0.0) -> None:
        self.spec, self.module = spec, spec.build().to(device)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.module.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.module.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]])

    @classmethod
    def of(
        cls, model: Any, objective: Objective, rows: Sequence[PairRow], config: TrainConfig, device: torch.device
    ) -> RewardHead | None:
        """The head that `objective` needs on `model`; None where it needs none."""
        if not any(need.startswith("head:") for need in objective.needs):
            return None
        layer: Any = Head.of(model).linear
        spec = HeadSpec.of(objective, rows, int(layer.in_features))
        return None if spec is None else cls(spec, device, config.weight_decay)

    def scored(self, inputs: LossInputs, prompts: Mapping[str, Tensor]) -> LossInputs:
        """The inputs with a score beside every state; `prompts` are the states at the prompts' ends, side by side."""
        return scored(self.module, self.spec.name, inputs, prompts)

    def penalty(self) -> Tensor | None:
        """What the head itself adds to the loss of a step, where it does."""
        own = getattr(self.module, "penalty", None)
        return own() if callable(own) else None

    def step(self, rate: float, most: float, mean: Callable[[Tensor], Tensor]) -> float:
        """One optimizer step at a learning rate; the norm that the gradients had, all of them cleared.

        `mean` averages a tensor over ranks, all of which call this once their backward passes are done. The head's
        gradients are scaled down to the norm `most`, where it is not 0, on their own: those of the model may lie in
        parts on many ranks. A norm that is not finite changes no weight.
        """
        weights = list(self.module.parameters())
        for weight in weights:
            weight.grad = mean(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, most or math.inf))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimizer's numbers by name, on the CPU."""
        found = {f"weights.{name}": value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        for name, values in optimizer_state(self.module, self._optimizer).items():
            found |= {f"optimizer.{name}:{key}": value for key, value in values.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave."""
        self.module.load_state_dict(below(state, "weights"))
        kept: dict[str, dict[str, Tensor]] = {}
        for place, value in below(state, "optimizer").items():
            name, _, key = place.rpartition(":")
            kept.setdefault(name, {})[key] = value
        load_optimizer_state(self.module, self._optimizer, kept)

    def save(self, folder: Path) -> None:
        """Write `head.safetensors` and `head.json` into the folder of the adapter or the model."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        about = {"name": self.spec.name, "settings": dict(self.spec.settings)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_head(folder: Path | str, device: torch.device | str = "cpu") -> tuple[HeadSpec, nn.Module]:
    """The head that was saved in the folder of an adapter or a model, ready to score with.

    Raises TrainError when the folder holds none.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise TrainError(f"{folder}: holds no {ABOUT}, so no reward head was trained with what lies there")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    spec = HeadSpec(about["name"], about["settings"])
    module = spec.build()
    module.load_state_dict(load_file(folder / WEIGHTS))
    return spec, module.to(device).eval()


def scored(module: nn.Module, name: str, inputs: LossInputs, prompts: Mapping[str, Tensor]) -> LossInputs:
    """The inputs with what the head called `name` says of every side's states.

    `prompts` are the states of the prompts' ends by side, which only a gate reads.
    """

    def score(side: str, states: Tensor) -> Tensor:
        given = [states.float()]
        if name == "gated":
            given.append(prompts[side].float())
        elif name == "ideal_point":
            user = inputs.value("user").long()
            given.append(user.view(-1, *[1] * (states.ndim - 2)).expand(states.shape[:-1]))
        found: Tensor = module(*given)
        return found

    sides = {side: replace(one, score=score(side, one.states)) for side, one in inputs.sides.items()}
    return replace(inputs, sides=sides)


def reads_logps(objective: Objective) -> bool:
    """Whether an objective reads log-probs, as all do that do not say `scores_only`."""
    parts = getattr(objective, "parts", ())
    return any(reads_logps(part) for _, part in parts) or not (parts or getattr(objective, "scores_only", False))


def with_states(inputs: LossInputs, batch: PairBatch, found: Read) -> LossInputs:
    """The inputs with the states that were read of a batch, where any were."""
    if found.states is None:
        return inputs
    sides = {side: replace(one, state=batch.laid(side, found.states)) for side, one in inputs.sides.items()}
    return replace(inputs, sides=sides)


def prompts_of(batch: PairBatch, found: Read) -> dict[str, Tensor]:
    """The states (B, H) or (B, K, H) of the prompts' last tokens by side, 0 for places without an answer.

    There each answer's first token is predicted; `found.inputs` are what a head reads for all tokens of a side.
    """
    prompts = {}
    for side, given in found.inputs.items():
        counts = batch.mask[batch.rows_of(side)].sum(-1)
        begins = (counts.cumsum(0) - counts)[counts > 0]
        ends = given.new_zeros(len(counts), given.shape[-1])
        ends = ends.index_put((counts.nonzero().squeeze(-1),), given[begins])
        prompts[side] = ends.view(*batch.laid(side, batch.mask).shape[:-1], -1)
    return prompts


def freeze_output_layer(model: nn.Module) -> None:
    """Do not train the layer that makes logits, which scores do not follow from, unless it is the embedding, too."""
    inner: Any = unwrapped(model)
    layer, tied = inner.get_output_embeddings(), set(inner.get_input_embeddings().parameters())
    for weight in () if layer is None else layer.parameters():
        if weight not in tied:
            weight.requires_grad_(False)


def below(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `name` and a dot, without these."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _count(rows: Sequence[PairRow], value: str) -> int:
    """How many numbers the value of a pair has or, where it is an index, how many there are to tell apart."""
    given = [row.value(value) for row in rows]
    shape = shape_of(given)
    if value == "attributes":
        return shape[0] if shape else 1
    return 1 + max(int(number) for one in given for number in laid_out(one, shape) if number is not None)
