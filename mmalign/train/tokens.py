"""Numbers per token that are computed before training: log-probs under the start of the run, other models' rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmalign.objectives import Objective
from mmalign.train.cache.reference import Measured
from mmalign.train.config import TrainConfig
from mmalign.train.data.given import OLD, token_models


def reference_of(name: str) -> str:
    """What `train.models` calls the model that token rewards under `name` are less by; without it, it is the start."""
    return f"{name}_reference"


@dataclass(frozen=True)
class TokenValues:
    """The token values that an objective reads.

    `names` are its own, `models` those of the models whose log-probs they are made of, which `measure` keeps on disk.
    """

    names: tuple[str, ...]
    models: tuple[str, ...]
    _measured: dict[str, Measured] = field(default_factory=dict)

    @classmethod
    def of(cls, objective: Objective, config: TrainConfig) -> TokenValues:
        """Those that `objective` needs; all models are in `config.models`."""
        rewards = token_models(objective)
        models = [name for reward in rewards for name in (reward, reference_of(reward)) if name in config.models]
        old = (OLD,) if f"tokens:{OLD}" in objective.needs else ()
        return cls((*old, *rewards), tuple(dict.fromkeys(models)))

    @property
    def need_start(self) -> bool:
        """Whether they are made of log-probs under the start of the run, too."""
        return any(name == OLD or reference_of(name) not in self.models for name in self.names)

    def measure(self, measured: Callable[[str], Measured]) -> None:
        """Take what `measured` finds under each model."""
        for name in self.models:
            self._measured[name] = measured(name)

    def values(self, indices: Sequence[int], mask: Tensor, start: Tensor | None) -> Mapping[str, Tensor]:
        """Values (N, T) of the pairs `indices` by name, laid out like a batch's `mask` (N, T) as is `start`: the
        log-probs under the start of the run, where they are needed.
        """
        found = {}
        for name in self.names:
            below = self._measured.get(reference_of(name))
            base = start if below is None else below.reference(indices, mask)
            assert base is not None
            found[name] = base if name == OLD else self._measured[name].reference(indices, mask) - base
        return found
