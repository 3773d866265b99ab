"""The run directory of a recipe: refused where it belongs to other settings."""

from __future__ import annotations

from pathlib import Path

from mmalign.engine import RunDir
from mmalign.engine.rundir import RECIPE_NAME
from mmalign.errors import RecipeError, StoreError
from mmalign.pipeline.training import has_begun, refuse_other_training
from mmalign.recipe.schema import FREE_KEYS, Recipe


def open_run(recipe: Recipe, *, trains: bool = True) -> RunDir:
    """The run directory, locked for this process.

    Raises StoreError when it belongs to another recipe; where the caller `trains`, or reads what was trained, also when
    a training was begun there with other settings. Nothing is written then.
    """
    for key, root in (("images", recipe.data.images), ("videos", recipe.data.videos)):
        if root is not None and recipe.output.resolve().is_relative_to(root.resolve()):
            raise RecipeError(f"output: {recipe.output} lies below data.{key}, so its files would become samples")
    if not (recipe.output / RECIPE_NAME).exists():
        _refuse_missing(recipe)  # a path mistyped would be part of the run's recipe for good
    run = RunDir(recipe.output)
    try:
        if trains and has_begun(run):
            refuse_other_training(recipe, run)
        run.begin(recipe.resolved, free=FREE_KEYS)
    except StoreError:
        run.close()
        raise
    return run


def _refuse_missing(recipe: Recipe) -> None:
    for key in ("images", "videos", "samples", "pairs", "media_root"):
        path: Path | None = getattr(recipe.data, key)
        if path is not None and not path.exists():
            raise RecipeError(f"data.{key}: {path}: no such file or folder")
