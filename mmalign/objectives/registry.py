"""Objectives by name."""

from __future__ import annotations

import difflib
from typing import Final

from mmalign.objectives.dpo import DPO, RobustDPO
from mmalign.objectives.rrpo import RRPO
from mmalign.objectives.sft import SFT
from mmalign.objectives.types import Objective

#: Every objective of the package; parameters are the fields of each class.
OBJECTIVES: Final[dict[str, type[Objective]]] = {kind.name: kind for kind in (DPO, RobustDPO, RRPO, SFT)}


def find_objective(name: str) -> type[Objective]:
    """The class called `name`. Raises LookupError, one line with the nearest name, when there is none."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    near = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(OBJECTIVES))}"
    raise LookupError(f"no objective is called {name!r}; {hint}")
