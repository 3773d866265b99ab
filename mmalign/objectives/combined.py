"""Weighted sums of objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmalign.objectives.types import (
    Distributional,
    LossInputs,
    LossOutput,
    Need,
    Objective,
    Remembering,
    Scoring,
    TokenTerm,
)

Term = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The weighted sum of other objectives, each with parameters of its own, on the same forwards.

    Args:
        terms: One mapping per objective: its name, its weight (1 when not given), and its parameters. Metrics are
            those of all; where two objectives have one by the same name, the later one's has its own name in front.
    """

    name: ClassVar[str] = "sum"
    formula: ClassVar[str] = "sum_i weight_i objective_i"
    source: ClassVar[str] = "its terms"

    terms: tuple[Term, ...] = ({"name": "dpo"},)
    parts: tuple[tuple[float, Objective], ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms is empty; it must name one objective or more")
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "parts", tuple(_part(index, term) for index, term in enumerate(self.terms)))
        self._refuse_two_heads()

    @classmethod
    def of(cls, *parts: tuple[float, Objective]) -> Sum:
        """The sum of objectives that are there already, as (weight, objective)."""
        terms = tuple(
            {
                "name": _spelled(part),
                "weight": weight,
                **{f.name: getattr(part, f.name) for f in _parameters(type(part))},
            }
            for weight, part in parts
        )
        return cls(terms=terms)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.needs for _, part in self.parts))

    @property
    def token_terms(self) -> Mapping[str, TokenTerm]:
        """The token terms of all parts, each under its place in the sum; those of one side are computed together."""
        joined: dict[str, dict[int, TokenTerm]] = {}
        for index, (_, part) in enumerate(self.parts):
            if isinstance(part, Distributional):
                for side, term in part.token_terms.items():
                    joined.setdefault(side, {})[index] = term
        return {side: _joint(terms) for side, terms in joined.items()}

    @property
    def head(self) -> Mapping[str, float]:
        """The parameters of the one head that parts may share."""
        found: dict[str, float] = {}
        for _, part in self.parts:
            if isinstance(part, Scoring):
                found |= part.head
        return found

    def _refuse_two_heads(self) -> None:
        """Raise ValueError, one line, where parts would have the head that they share in two forms."""
        found: dict[str, float] = {}
        for index, (_, part) in enumerate(self.parts):
            for key, value in part.head.items() if isinstance(part, Scoring) else ():
                if found.setdefault(key, value) != value:
                    told = f"{key} is {value!r}, in a term before it {found[key]!r}"
                    raise ValueError(f"terms.{index}: {told}; the head is one for all terms")

    def start_memory(self) -> dict[str, Tensor]:
        """The memories of all parts, each under its place in the sum."""
        return {
            f"{index}.{key}": value
            for index, (_, part) in enumerate(self.parts)
            if isinstance(part, Remembering) and "memory" in part.needs
            for key, value in part.start_memory().items()
        }

    def remember(self, memory: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next memories of all parts."""
        found: dict[str, Tensor] = {}
        for index, (_, part) in enumerate(self.parts):
            if isinstance(part, Remembering) and "memory" in part.needs:
                new = part.remember(_own(memory, index), _own(seen, index))
                found |= {f"{index}.{key}": value for key, value in new.items()}
        return found

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        outputs = [part(_of_part(inputs, index)) for index, (_, part) in enumerate(self.parts)]
        weights = [weight for weight, _ in self.parts]
        losses = [weight * output.loss for weight, output in zip(weights, outputs, strict=True)]
        pooled: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        for index, (weight, output) in enumerate(zip(weights, outputs, strict=True)):
            label = self._label(index)
            for side, values in output.pooled.items():
                pooled[side] = pooled.get(side, 0.0) + weight * values
            for key, value in output.metrics.items():
                if key not in metrics:
                    metrics[key] = value
                elif not key.endswith(("_logps", "_logps_change")):  # which are the texts' own, and no objective's
                    metrics[f"{label}/{key}"] = value
            metrics[f"{label}/loss"] = output.loss.detach()
            seen |= {f"{index}.{key}": value for key, value in output.seen.items()}
        return LossOutput(loss=sum(losses[1:], losses[0]), pooled=pooled, metrics=metrics, seen=seen)

    def _label(self, index: int) -> str:
        names = [part.name for _, part in self.parts]
        return names[index] if names.count(names[index]) == 1 else f"{names[index]}_{index + 1}"


@dataclass(frozen=True, kw_only=True)
class MixedMPO(Sum):
    """Preference, quality and likelihood at once, as multimodal models are tuned."""

    name: ClassVar[str] = "mpo"
    formula: ClassVar[str] = "0.8 dpo + 0.2 bco_pair + 1 sft"
    source: ClassVar[str] = "Mixed preference optimisation, Wang et al. 2024, arXiv 2411.10442"

    terms: tuple[Term, ...] = (
        {"name": "dpo", "weight": 0.8},
        {"name": "bco_pair", "weight": 0.2},
        {"name": "sft", "weight": 1.0},
    )


def _part(index: int, term: Mapping[str, Any]) -> tuple[float, Objective]:
    """The weight and the objective that one mapping names. Raises ValueError, one line."""
    from mmalign.objectives.registry import find_objective

    where = f"terms.{index}"
    if not isinstance(term, Mapping) or not isinstance(term.get("name"), str):
        raise ValueError(f"{where} is {term!r}; it must be a mapping with the name of an objective")
    weight = term.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"{where}.weight is {weight!r}; it must be a number")
    try:
        kind: Any = find_objective(term["name"])
    except LookupError as error:
        raise ValueError(f"{where}.name: {error.args[0]}") from None
    given = {key: value for key, value in term.items() if key not in ("name", "weight")}
    known = [parameter.name for parameter in _parameters(kind)]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: {kind.name} has no such parameter; it has {', '.join(known) or 'none'}")
        default = next(parameter.default for parameter in _parameters(kind) if parameter.name == key)
        if isinstance(default, float | int) and not isinstance(value, float | int):
            raise ValueError(f"{where}.{key} is {value!r}; it must be a number")
    try:
        return float(weight), kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _parameters(kind: Any) -> Sequence[dataclasses.Field[Any]]:
    return [parameter for parameter in dataclasses.fields(kind) if parameter.init]


def _spelled(objective: Objective) -> str:
    """The name under which an objective is found again."""
    from mmalign.objectives.registry import OBJECTIVES

    kind = type(objective)
    return kind.name if OBJECTIVES.get(kind.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def _own(values: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    place = f"{index}."
    return {key.removeprefix(place): value for key, value in values.items() if key.startswith(place)}


def _of_part(inputs: LossInputs, index: int) -> LossInputs:
    """What a part sees: of memory and token terms its own."""
    sides = {name: dataclasses.replace(side, terms=_own(side.terms, index)) for name, side in inputs.sides.items()}
    return dataclasses.replace(inputs, sides=sides, memory=_own(inputs.memory, index))


def _joint(terms: Mapping[int, TokenTerm]) -> TokenTerm:
    def all_of_them(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": value
            for index, term in terms.items()
            for name, value in term.function(logits, labels).items()
        }

    return TokenTerm(all_of_them, tuple(dict.fromkeys(source for term in terms.values() for source in term.sources)))
