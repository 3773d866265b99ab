"""Pure functions of tensors: what training minimises. This room imports torch and nothing of mmalign."""

from mmalign.objectives.dpo import DPO, RobustDPO
from mmalign.objectives.registry import OBJECTIVES, find_objective
from mmalign.objectives.rrpo import RRPO
from mmalign.objectives.sft import SFT
from mmalign.objectives.types import Completions, LossInputs, LossOutput, Need, Objective

__all__ = [
    "DPO",
    "OBJECTIVES",
    "RRPO",
    "SFT",
    "Completions",
    "LossInputs",
    "LossOutput",
    "Need",
    "Objective",
    "RobustDPO",
    "find_objective",
]
