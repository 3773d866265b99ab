"""Pure functions of tensors: what training minimises. This room imports torch and nothing of mmalign.

A recipe names an objective (`objective: {name: rrpo, beta: 0.5, alpha: 0.05}`), a weighted sum of some (`{name: sum,
terms: [{name: dpo, weight: 0.8}, {name: sft}]}`), or a class of the user's own (`{name: file.py:Class}`).
"""

from mmalign.objectives.combined import Sum
from mmalign.objectives.dpo import DPO, RobustDPO
from mmalign.objectives.families import FAMILIES
from mmalign.objectives.needs import refuse_unmet
from mmalign.objectives.registry import LEGEND, OBJECTIVES, ObjectiveInfo, describe_objective, find_objective
from mmalign.objectives.rrpo import RRPO
from mmalign.objectives.sft import SFT
from mmalign.objectives.types import (
    Completions,
    Distributional,
    LossInputs,
    LossOutput,
    Need,
    Objective,
    Remembering,
    Scoring,
    TokenTerm,
)

__all__ = [
    "DPO",
    "FAMILIES",
    "LEGEND",
    "OBJECTIVES",
    "RRPO",
    "SFT",
    "Completions",
    "Distributional",
    "LossInputs",
    "LossOutput",
    "Need",
    "Objective",
    "ObjectiveInfo",
    "Remembering",
    "RobustDPO",
    "Scoring",
    "Sum",
    "TokenTerm",
    "describe_objective",
    "find_objective",
    "refuse_unmet",
]
