"""Plain likelihood of the chosen side: the control that shows what preferences add to fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmalign.objectives.terms import reduce_tokens
from mmalign.objectives.types import LossInputs, LossOutput, Need


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Negative log-likelihood of the chosen text, averaged over all chosen tokens of an optimizer step."""

    name: ClassVar[str] = "sft"
    formula: ClassVar[str] = "-L(y_w), mean over all tokens of a step"
    source: ClassVar[str] = "maximum likelihood"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        logps = reduce_tokens(inputs.chosen.token_logps, inputs.chosen.mask)
        metrics = {
            "chosen_logps": logps.detach(),
            "nll": -reduce_tokens(inputs.chosen.token_logps, inputs.chosen.mask, mean=True).detach(),
        }
        return LossOutput(loss=torch.zeros_like(logps), pooled={"chosen": -logps}, metrics=metrics)
