"""The model of a recipe: trained on the run's pairs, and known by the settings that it was trained with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.atomic import make_parent, write_json
from mmalign.engine import RunDir
from mmalign.engine.rundir import differences
from mmalign.errors import StoreError
from mmalign.lm.load import load_model
from mmalign.lm.spec import ModelSpec
from mmalign.media.image import file_sha256
from mmalign.objectives import Objective
from mmalign.pairs import PairRow, read_pairs
from mmalign.pipeline.source import limits_of, root_of
from mmalign.recipe.schema import Recipe
from mmalign.train.config import FREE_KEYS
from mmalign.train.distributed.launch import ALONE, Launch, shares_weights
from mmalign.train.stages import train_pairs

#: Beside a trained model: the settings that its weights depend on.
MADE_WITH = "train/made_with.json"


def train(recipe: Recipe, run: RunDir, launch: Launch = ALONE) -> ModelSpec:
    """Train on the run's pairs; returns how to load the result. Raises StoreError when there are no pairs."""
    rows = read_pairs(run.pairs_path())

    def record() -> None:
        make_parent(run.path / MADE_WITH)
        write_json(run.path / MADE_WITH, training_settings(recipe, run))

    launch.by_first(record)
    return train_on(recipe, rows, recipe.objective, run.path / "train")


def train_on(recipe: Recipe, rows: list[PairRow], objective: Objective, output: Path) -> ModelSpec:
    """Train on these pairs into `output`; returns how to load the result. Raises StoreError when there are none."""
    if not rows and recipe.data.pairs is not None:
        raise StoreError(f"{recipe.data.pairs}: holds no pairs, so there is nothing to train on")
    if not rows:
        raise StoreError(
            f"{recipe.output}: the run made no pairs, so there is nothing to train on; "
            f"`mmalign inspect {recipe.output}` shows why"
        )
    train_pairs(
        load_model(recipe.model, stay_on_cpu=shares_weights()),
        rows,
        objective,
        recipe.train,
        data_root=root_of(recipe),
        output=output,
        limits=limits_of(recipe),
    )
    return _spec_of(recipe, output)


def _spec_of(recipe: Recipe, output: Path) -> ModelSpec:
    """How to load what a training run left in `output`."""
    if recipe.train.lora is None:
        return replace(recipe.model, name=str(output / "model"), adapter=None)  # merged, if there was one
    return replace(recipe.model, adapter=str(output / "adapter"))


def training_settings(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """What the trained weights depend on: the model, the pairs, the objective and how it was trained."""
    train = {key: value for key, value in recipe.resolved["train"].items() if key not in FREE_KEYS}
    model = {key: value for key, value in recipe.resolved["model"].items() if key not in ("device", "download")}
    pairs = file_sha256(run.pairs_path())
    return {"model": model, "objective": recipe.resolved["objective"], "train": train, "pairs": pairs}


def trained(recipe: Recipe, run: RunDir) -> ModelSpec:
    """How to load the run's trained model. Raises StoreError when there is none, or one of other settings."""
    if not has_begun(run) or not (run.path / "train" / "result.json").exists():
        raise StoreError(f"{run.path}: holds no trained model; `mmalign train RECIPE` makes one")
    refuse_other_training(recipe, run)
    return _spec_of(recipe, run.path / "train")


def has_begun(run: RunDir) -> bool:
    """Whether there is a training that would be gone on with, or that is done."""
    folder = run.path / "train"
    return (run.path / MADE_WITH).is_file() and (
        (folder / "result.json").exists() or any(folder.rglob("checkpoints/step-*"))
    )


def refuse_other_training(recipe: Recipe, run: RunDir) -> None:
    """Raises StoreError where the run's model was trained with other settings."""
    begun = json.loads((run.path / MADE_WITH).read_text(encoding="utf-8"))
    if changed := differences(begun, training_settings(recipe, run)):
        raise StoreError(
            f"{run.path}: its model was trained with other settings ({'; '.join(changed.values())}); "
            "put the old values back or name another output"
        )
