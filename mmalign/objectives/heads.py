"""Small modules from a model's last hidden state to scores, for reward models; the need "head:name" asks for one.

Each takes the state (..., H) of the last token of a completion, and what else its need says, and gives scores (...) or
(..., A). No head changes the model but through its gradient.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

#: Rows, spread evenly, from which `fitted` takes rank correlations.
MOST_RANKED = 2000


class ScalarHead(nn.Module):
    """One score of a state: the head of a Bradley-Terry reward model, without a bias, which pairs could not tell."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        scores: Tensor = self.linear(state)
        return scores.squeeze(-1)


class AttributeHead(nn.Module):
    """A score for each of `count` attributes (HelpSteer2: 5), or the logits of as many degrees."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, count)

    def forward(self, state: Tensor) -> Tensor:
        scores: Tensor = self.linear(state)
        return scores


class GatedScore(nn.Module):
    """ArmoRM's second stage: attributes weighed by a gate that reads the prompt (arXiv 2406.12845).

    The attributes' ridge `weights` (A, H) stay as they are; of each score `penalty` (A,) times that of the attribute
    `verbose` is taken, in training too (the released code trains on scores without). Only the gate learns.
    """

    def __init__(self, weights: Tensor, penalty: Tensor, verbose: int, width: int = 1024, temperature: float = 10.0):
        super().__init__()
        count, size = weights.shape
        self.register_buffer("weights", weights)
        self.register_buffer("penalty", penalty)
        self.verbose, self.temperature = verbose, temperature
        layers = (nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, count))
        self.gate = nn.Sequential(*layers)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, state: Tensor, prompt: Tensor) -> Tensor:
        """Scores (...) of states and of the prompts' states (..., H)."""
        weights, penalty = self.get_buffer("weights"), self.get_buffer("penalty")
        gate = (self.gate(prompt.detach()) / self.temperature).softmax(-1) * self.scale
        return gated(state.detach() @ weights.T, gate, penalty, self.verbose)


class IdealPoint(nn.Module):
    """PAL: the nearer a text lies to the user's point, the better (arXiv 2406.08469).

    A user's point is a mixture of `prototypes` (K of them); with one it is one reward for all. The score is the
    negative distance, or its square. Prototypes beyond `bound` from the origin are fined.
    """

    def __init__(
        self,
        size: int,
        prototypes: int,
        users: int,
        dimension: int = 512,
        *,
        squared: bool = False,
        bound: float = 4.0,
    ):
        super().__init__()
        self.embed = nn.Linear(size, dimension)
        self.prototypes = nn.Parameter(torch.randn(prototypes, dimension) / dimension**0.5)
        self.users = nn.Parameter(torch.zeros(users, prototypes))
        self.squared, self.bound = squared, bound

    def forward(self, state: Tensor, user: Tensor) -> Tensor:
        """Scores (...) of states for users, given by their index (...)."""
        point = self.users[user].softmax(-1) @ self.prototypes
        return -distance(self.embed(state), point, squared=self.squared)

    def penalty(self) -> Tensor:
        """What to add to the loss of a step so that the prototypes stay within the bound."""
        return torch.relu(distance(self.prototypes, torch.zeros_like(self.prototypes)) - self.bound).sum()


#: Heads by the name that a need "head:name" gives. What `Scoring.head` of an objective holds are their arguments.
HEADS: Final[dict[str, type[nn.Module]]] = {
    "scalar": ScalarHead,
    "attributes": AttributeHead,
    "degree": AttributeHead,
    "gated": GatedScore,
    "ideal_point": IdealPoint,
}


def gated(scores: Tensor, gate: Tensor, penalty: Tensor, verbose: int) -> Tensor:
    """Mixture (...) of attribute scores (..., A) from each of which its share of verbosity is taken."""
    adjusted = scores - penalty * scores[..., verbose : verbose + 1]
    return (gate * adjusted).sum(-1)


def distance(first: Tensor, second: Tensor, *, squared: bool = False) -> Tensor:
    """Euclidean distance (...) over the last axis, or its square; at 0 its gradient is 0."""
    total = ((first - second) ** 2).sum(-1)
    return total if squared else (total + 1e-12).sqrt()


@torch.no_grad()
def ridge(states: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Weights (A, H) of one ridge regression per attribute: states (N, H), labels (N, A) with NaN where there is none.

    An attribute without labels gets weights 0.
    """
    rows = []
    eye = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    for label in labels.unbind(-1):
        known = ~label.isnan()
        x = states[known]
        rows.append(torch.linalg.solve(x.T @ x + penalty * eye, x.T @ label[known]))
    return torch.stack(rows)


@torch.no_grad()
def fitted(states: Tensor, labels: Tensor, verbose: int) -> tuple[Tensor, Tensor]:
    """ArmoRM's first stage: weights (A, H) and verbosity penalties (A,) for a `GatedScore`.

    States (N, H), labels (N, A) with NaN where there is none. The penalty of the regressions is the one of 1e-4 to 1e4
    with the least squared error on every fifth row, which the others predict; then all rows are fitted.
    """
    dtype = states.dtype
    # Squares of numbers that nearly depend on each other need the room.
    states, labels = states.double(), labels.double()
    held = torch.arange(len(states), device=states.device) % 5 == 4

    def error(penalty: float) -> float:
        found = states[held] @ ridge(states[~held], labels[~held], penalty).T
        return float((found - labels[held]).square().nanmean().nan_to_num())

    weights = ridge(states, labels, min((10.0**power for power in range(-4, 5)), key=error))
    # Rank correlation compares all rows with each other.
    few = states[:: -(-len(states) // MOST_RANKED)]
    penalty = verbosity_penalty(few @ weights.T, verbose, torch.linspace(0, 1, 101))
    return weights.to(dtype), penalty.to(dtype)


@torch.no_grad()
def verbosity_penalty(scores: Tensor, verbose: int, grid: Tensor, bound: float = 0.03) -> Tensor:
    """Per attribute (A,) the least factor of `grid` at which scores (N, A) rank-correlate with verbosity by `bound`
    or less; the largest where none does, and 0 for verbosity itself.
    """
    wanted = torch.zeros(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    length = scores[:, verbose]
    for index, score in enumerate(scores.unbind(-1)):
        if index != verbose:
            fits = [factor for factor in grid.sort().values if spearman(score - factor * length, length) <= bound]
            wanted[index] = fits[0] if fits else grid.max()
    return wanted


@torch.no_grad()
def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two lists (N,), ties sharing their mean rank."""
    centred = []
    for values in (first, second):
        less = (values.unsqueeze(0) < values.unsqueeze(1)).sum(-1)
        equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(-1)
        rank = less.double() + (equal.double() - 1) / 2
        centred.append(rank - rank.mean())
    norm = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / norm) if norm > 0 else 0.0
