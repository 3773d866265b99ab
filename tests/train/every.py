"""Pair rows with all that an objective asks of them: its own example, told anew with other words and numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mmalign.media.files import file_sha256
from mmalign.objectives import OBJECTIVES, Objective
from mmalign.objectives.carried import example
from mmalign.objectives.noisy import LCPO, Selfie
from mmalign.objectives.policy import SCoRe
from mmalign.objectives.reward import PAL, ArmoRM, StrengthRM
from mmalign.pairs import PairRow
from mmalign.sides import read_sides, read_values
from tests.models import picture

#: Sources of whole distributions that are a side of the pairs.
HISTORY = "no_history"
#: Values that are indices, below two.
INDICES = ("annotator", "source", "user", "absolute", "degrees", "levels")
#: With settings by which they need more.
VARIANTS: tuple[Objective, ...] = (Selfie(extrapolation=1.0, warmup=0.0), SCoRe(stage=1), StrengthRM(contrast=1.0))


def objectives() -> list[Objective]:
    """Every objective of the package, small where it has a size."""
    small = {"pal": PAL(dimension=8), "armorm": ArmoRM(width=8), "lcpo": LCPO(annotators=2)}
    return [*(small.get(name) or kind() for name, kind in OBJECTIVES.items()), *VARIANTS]


def rows_for(objective: Objective, root: Path, *, count: int = 4, pictures: bool = False) -> list[PairRow]:
    """`count` pairs for `objective`; with `pictures` each is about one of its own in `root`, else about none."""
    return [_row(objective, root, index, pictures=pictures) for index in range(count)]


def _row(objective: Objective, root: Path, index: int, *, pictures: bool) -> PairRow:
    shown = example(objective)
    media = {}
    if pictures:
        path = root / f"boats-{index}.png"
        picture(index, size=(32, 32)).image.save(path)
        media = {"path": path.name, "sha256": file_sha256(path)}

    def told(value: Any) -> Any:
        """The example's texts and contexts, about this row's picture and with a number of its own."""
        if isinstance(value, list):
            return [told(part) for part in value if pictures or not (isinstance(part, dict) and "path" in part)]
        if not isinstance(value, dict):
            return value
        if "path" in value:
            return {**value, "type": "image", **media}
        if value.get("type") == "text":
            return {**value, "text": f"{value['text']} {index}"}
        if "role" in value and not told(value["content"]):
            return {**value, "content": [{"type": "text", "text": f"Well? {index}"}]}
        if "text" in value:
            return {**{key: told(part) for key, part in value.items()}, "text": _said(value["text"], index)}
        return {key: told(part) for key, part in value.items()}

    numbers = random.Random(index)

    def valued(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [valued(name, part) for part in value]
        if name in INDICES:
            return (value + index) % 2 + (name == "levels")
        return value + numbers.uniform(-0.3, 0.3)

    sides = shown.get("sides", {})
    if "logits:no_history" in objective.needs:
        alone = [{"role": "user", "content": [{"type": "text", "text": "Well?"}]}]
        sides = {**sides, HISTORY: {"text": shown["chosen"], "context": alone}}
    return PairRow(
        id=f"s{index}#0.0",
        sample_id=f"s{index}",
        method="test",
        context=told(shown["context"]),
        chosen=_said(shown["chosen"], index),
        rejected=_said(shown["rejected"], index),
        chosen_spans=((0, 3),) if "chosen_spans" in shown else (),
        rejected_spans=((0, 5),) if "rejected_spans" in shown else (),
        gap=shown.get("gap"),
        weight=0.5 + index / 2,
        p=1.0 - index / 10,
        sides=read_sides({name: told(side) for name, side in sides.items()}),
        values=read_values({name: valued(name, value) for name, value in shown.get("values", {}).items()}),
    )


def _said(text: str, index: int) -> str:
    """A text of another length for every row."""
    return f"{text}{' There is a fish.' * (index % 3)}"
