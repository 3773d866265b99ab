"""Random inputs for any objective: exactly what its needs name, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign.objectives import Completions, Distributional, LossInputs, Objective, Remembering, TokenTerm
from mmalign.objectives.distributions import stream, token_logps

SIZE, ANSWERS, LENGTH, VOCABULARY, ATTRIBUTES, STATES = 3, 4, 5, 6, 3, 2
#: Sides that hold more than one completion per pair.
MANY = {
    "answers": (ANSWERS,),
    "answers_alone": (ANSWERS,),
    "samples": (ANSWERS,),
    "first_turn": (ANSWERS,),
    "second_turn": (ANSWERS,),
    "degraded": (ANSWERS,),
    "verdict_chosen": (2,),
    "verdict_rejected": (2,),
}
#: Values with an axis more, and those that are indices below a number.
LISTED = (
    "scores rewards similarity gaps first_rewards second_rewards log_attributes log_prior log_proposal chosen_sources "
    "rejected_sources teacher_means degrees levels"
).split()
WIDE = dict.fromkeys(LISTED, (ANSWERS,)) | {"preferences": (ANSWERS, ANSWERS), "attributes": (ATTRIBUTES,)}
INDICES = {"annotator": 1, "source": 2, "user": 1, "degrees": ATTRIBUTES, "levels": 4, "absolute": 2}
#: Heads with more than one score per completion.
SCORES = {"head:attributes": (ATTRIBUTES,), "head:degree": (ATTRIBUTES,)}


@dataclass(frozen=True)
class Room:
    """Inputs, the leaves that may learn, and those that must not."""

    inputs: LossInputs
    learning: list[Tensor]
    fixed: list[Tensor]


def room(
    objective: Objective,
    seed: int,
    *,
    dtype: torch.dtype = torch.float64,
    size: float = 3.0,
    along: Sequence[Tensor] = (),
    by: float = 0.0,
) -> Room:
    """Random inputs; log-probs are down to -`size` a token, scores and states up to `size`.

    With `along`, the k-th leaf that learns is moved `by` the k-th of its tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    needs = objective.needs
    learning: list[Tensor] = []
    fixed: list[Tensor] = []

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    def leaf(values: Tensor, kept: list[Tensor]) -> Tensor:
        if along and kept is learning:
            values = values + by * along[len(learning)]
        kept.append(values.requires_grad_())
        return values

    many = {**MANY, "answers": (ANSWERS, ANSWERS)} if objective.name == "sami" else MANY
    terms = objective.token_terms if isinstance(objective, Distributional) else {}
    token_values = [need.partition(":")[2] for need in needs if need.startswith("tokens:")]
    head = next((need for need in needs if need.startswith("head:")), None)

    def side(name: str, term: TokenTerm | None) -> Completions:
        shape = (SIZE, *many.get(name, ()), LENGTH)
        lengths = torch.randint(1, LENGTH + 1, shape[:-1], generator=generator)
        # CUT's two sides hold the same tokens.
        mask = torch.arange(LENGTH) < (lengths * 0 + 4 if objective.name == "cut" else lengths).unsqueeze(-1)
        found: dict[str, Tensor] = {}
        if term is None:
            logps = leaf(-size * rand(*shape) * mask, learning)
        else:
            labels = torch.randint(0, VOCABULARY, shape, generator=generator)
            policy = leaf(size * (rand(*shape, VOCABULARY) - 0.5), learning)
            logits = {"policy": policy}
            for source in term.sources:
                kept = learning if source == "no_history" else fixed
                logits[source] = leaf(size * (rand(*shape, VOCABULARY) - 0.5), kept)
            rows = {source: values[mask] for source, values in logits.items()}
            found = stream(term, lambda piece: {key: row[piece] for key, row in rows.items()}, labels[mask], mask)
            logps = token_logps(policy, labels) * mask
        where = "reference" if name in ("chosen", "rejected") else f"reference:{name}"
        scored = head and (name in ("chosen", "rejected", "degraded", "chosen_view", "rejected_view"))
        return Completions(
            token_logps=logps,
            mask=mask,
            reference_token_logps=leaf(-size * rand(*shape) * mask, fixed) if where in needs else None,
            changed=(rand(*shape) < 0.5) & mask if "changed" in needs else None,
            token_divergence=leaf(rand(*shape) * mask, learning)
            if "divergence" in needs and name == "chosen"
            else None,
            token_values={key: leaf(-size * rand(*shape), fixed) for key in token_values},
            terms=found,
            score=leaf(size * (rand(*shape[:-1], *SCORES.get(head or "", ())) - 0.5), learning) if scored else None,
            state=leaf(size * rand(*shape[:-1], STATES), learning) if "states" in needs else None,
        )

    named = sorted(need.removeprefix("side:") for need in needs if need.startswith("side:"))
    named = [name for name in ("chosen", "rejected") if name in needs] + named
    values = {}
    for name in sorted(need.removeprefix("value:") for need in needs if need.startswith("value:")):
        shape = (SIZE, *WIDE.get(name, ()))
        if name in INDICES:
            values[name] = torch.randint(0, INDICES[name], shape, generator=generator) + (name == "levels")
        else:
            values[name] = leaf(rand(*shape), fixed)
    memory = objective.start_memory() if isinstance(objective, Remembering) and "memory" in needs else {}
    inputs = LossInputs(
        sides={name: side(name, terms.get(name)) for name in named},
        p=leaf(rand(SIZE), fixed),
        values=values,
        memory=memory,
    )
    return Room(inputs, learning, fixed)


def reordered(inputs: LossInputs, order: Tensor, extra: int) -> LossInputs:
    """The same pairs in another order, padded by `extra` tokens."""

    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order]

    def tokens(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.nn.functional.pad(values[order], (0, extra))

    sides = {}
    for name, one in inputs.sides.items():
        moved = {key: tokens(getattr(one, key)) for key in ("reference_token_logps", "changed", "token_divergence")}
        logps, mask = tokens(one.token_logps), tokens(one.mask)
        assert logps is not None
        assert mask is not None
        sides[name] = replace(
            one,
            token_logps=logps,
            mask=mask,
            token_values={
                key: value for key in one.token_values if (value := tokens(one.token_values[key])) is not None
            },
            terms={key: value for key in one.terms if (value := tokens(one.terms[key])) is not None},
            score=rows(one.score),
            state=rows(one.state),
            **moved,
        )
    return replace(
        inputs, sides=sides, p=inputs.p[order], values={key: value[order] for key, value in inputs.values.items()}
    )
