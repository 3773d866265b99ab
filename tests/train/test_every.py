"""Every objective of the package trains through the trainer, on exactly what plain forwards say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.objectives import Objective
from mmalign.train.trainer import PreferenceTrainer
from tests.models import tiny
from tests.train.by_hand import ByHand
from tests.train.every import objectives, rows_for
from tests.train.rows import quick
from tests.train.runs import curve

#: Names by which objectives ask for other models.
OTHERS = ("teacher", "teacher_reference", "dpo", "reverse_dpo", "reward")
#: Objectives under which the model itself does not learn, only its head.
HEAD_ONLY = ("armorm",)
#: One objective of every kind of need, trained on pictures, too.
SEEING = ("aot", "lcpo", "bradley_terry", "spo_degree", "armorm", "grpo", "sail", "dckd", "next_quill", "rrpo")
STEPS = 2
#: Of objectives with the same needs the first one is given what is compared with plain forwards.
COMPARED = {objective.needs: objective for objective in reversed(objectives())}
CASES = [
    *(("llama", objective) for objective in objectives()),
    *(("qwen3-vl", objective) for objective in objectives() if objective.name in SEEING),
]


@dataclass(frozen=True)
class Others:
    """Other models with the tokens of one, by the names that objectives ask for: on disk and here."""

    folders: dict[str, str]
    models: dict[str, Any]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Others]:
    """Other models for each of the two models that are trained."""
    found = {}
    for model in ("llama", "qwen3-vl"):
        root = tmp_path_factory.mktemp(model)
        made = {name: tiny(model, seed) for seed, name in enumerate(OTHERS, 1)}
        for name, other in made.items():
            other.model.save_pretrained(root / name)
            other.processor.save_pretrained(root / name)
        folders = {name: str(root / name) for name in made}
        found[model] = Others(folders, {name: other.model for name, other in made.items()})
    return found


@pytest.mark.parametrize(("model", "objective"), CASES, ids=[f"{model}-{one.name}" for model, one in CASES])
def test_it_trains(model: str, objective: Objective, tmp_path: Path, others: dict[str, Others]) -> None:
    is_seeing, other = model != "llama", others[model]
    rows = rows_for(objective, tmp_path, count=3, pictures=is_seeing)
    checked: Any = objective
    if is_seeing or COMPARED[objective.needs] == objective:
        checked = ByHand(objective, tiny(model), rows, tmp_path, other.models, STEPS)
    config = quick(batch_size=3, micro_batch_size=3, epochs=STEPS, models=other.folders, learning_rate=3e-3)
    trainer = PreferenceTrainer(tiny(model), rows, checked, config, tmp_path, tmp_path / "run", quiet=True)
    if checked is not objective:
        checked.trainer = trainer
    before = {key: weight.clone() for key, weight in trainer.model.named_parameters()}
    result = trainer.train()
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert checked is objective or len(checked.outputs) == STEPS
    changed = {key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])}
    assert bool(changed) == (objective.name not in HEAD_ONLY)
    assert all("lora_" in key for key in changed)
    assert (result.path / "head.safetensors").exists() == any(need.startswith("head:") for need in objective.needs)
