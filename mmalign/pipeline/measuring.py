"""The numbers of a recipe: before, after and the controls, on what no pair was made of."""

from __future__ import annotations

from typing import Any

from mmalign.engine import RunDir
from mmalign.errors import RecipeError
from mmalign.evaluate.controls import random_signs
from mmalign.evaluate.table import Evaluation, Items, evaluation_items, is_measured, measure_model, measure_texts
from mmalign.lm.spec import ModelSpec
from mmalign.objectives import SFT
from mmalign.pairs import PairRow, read_pairs
from mmalign.pipeline.source import limits_of
from mmalign.pipeline.training import train_on, training_settings
from mmalign.recipe.schema import Recipe
from mmalign.train.distributed.launch import ALONE, Launch


def held_out(recipe: Recipe) -> Items | None:
    """The pictures or clips to measure on; None where the recipe names none."""
    limits, num_frames = limits_of(recipe).picture, recipe.data.num_frames
    return evaluation_items(recipe.evaluate, seed=recipe.seed, limits=limits, num_frames=num_frames)


def _refuse_overlap(items: Items, rows: list[PairRow]) -> None:
    used = {ref.sha256 for row in rows for ref in row.media if ref.sha256}
    shared = [item.sample.id for item in items.items if item.sample.media[0].ref.sha256 in used]
    if shared:
        raise RecipeError(
            f"evaluate.labels: {len(shared)} of its pictures also gave pairs (such as {shared[0]}); "
            "measure on pictures that were not trained on"
        )


def evaluate(recipe: Recipe, run: RunDir, trained: ModelSpec, launch: Launch = ALONE) -> bool:
    """Measure before, after and the controls on held-out pictures; False when the recipe asks for no measuring.

    The control models are trained here, on the same pairs with the same settings. A table that was made with the same
    settings is kept. All processes of a launch train, the first one measures.
    """
    settings = training_settings(recipe, run) | {key: recipe.resolved[key] for key in ("seed", "evaluate")}
    if launch.agreed(lambda: is_measured(run.path, settings)):
        return True
    rows = read_pairs(run.pairs_path())

    def begun() -> Evaluation | None:
        if (items := held_out(recipe)) is None:
            return None
        _refuse_overlap(items, rows)
        return Evaluation(recipe.evaluate, recipe.seed, items, settings)

    table: Any = launch.by_first(begun)  # None in the other processes, which ask nothing of it
    if launch.agreed(lambda: table is None):
        return False

    def measured(name: str, kind: str, model: ModelSpec) -> Any:
        return launch.by_first(lambda: measure_model(table, name, kind, model, recipe.generate.batch_size))

    before = measured("before", "before", recipe.model)
    after = measured("after", "after", trained)
    if recipe.evaluate.controls:
        folder = run.path / "controls"
        signs = train_on(recipe, random_signs(rows, recipe.seed), recipe.objective, folder / "random_signs")
        measured("random signs", "control", signs)
        likelihood = train_on(recipe, rows, SFT(), folder / "sft")
        measured("SFT on chosen", "control", likelihood)
        launch.by_first(lambda: measure_texts(table, "cut as short", "control", table.cut_to(before, after)))
    launch.by_first(lambda: table.write(run.path))
    return True
