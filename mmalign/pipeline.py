"""The whole loop of a recipe: samples -> pairs -> model -> numbers -> page. Each step goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mmalign.engine import RunDir, Summary, generate_async, progress_on
from mmalign.errors import RecipeError, StoreError
from mmalign.evaluate.controls import random_signs
from mmalign.evaluate.table import Evaluation, evaluation_items, is_measured, measure_model, measure_texts
from mmalign.lm.load import load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.spec import ModelSpec
from mmalign.media.image import PictureLimits
from mmalign.objectives import SFT, Objective
from mmalign.pairs import PairRow, read_pairs
from mmalign.recipe.schema import FREE_KEYS, Recipe
from mmalign.samples import data_folder, list_pictures, read_samples
from mmalign.tiny import draw_scene, scenes
from mmalign.train.trainer import PreferenceTrainer
from mmalign.types import MediaRef, SampleRow


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, the folder that their media paths start from, and how many there are, where that is known."""

    rows: Iterable[SampleRow]
    root: Path
    total: int | None = None


def open_run(recipe: Recipe) -> RunDir:
    """The run directory, locked for this process. Raises StoreError when it belongs to another recipe."""
    run = RunDir(recipe.output)
    try:
        run.begin(recipe.resolved, free=FREE_KEYS)
    except StoreError:
        run.close()
        raise
    return run


def limits_of(recipe: Recipe) -> PictureLimits:
    return PictureLimits(max_pixels=recipe.data.max_pixels, max_side=recipe.data.max_side)


def source_of(recipe: Recipe) -> Source:
    """The samples that the recipe names; drawn scenes are drawn into the run directory first.

    Raises RecipeError when the recipe names no source.
    """
    data = recipe.data
    total: int | None = None
    if data.scenes:
        total = data.scenes
        root = recipe.output / "scenes"
        rows: Iterable[SampleRow] = _draw(root, data.scenes, recipe.seed)
    elif data.images or data.samples:
        path = Path(data.images or data.samples or "")
        root = data_folder(path)
        rows = read_samples(path)
        total = len(list_pictures(path).pictures) if path.is_dir() else None
    else:
        raise RecipeError("data: no source; give --data.images DIR, --data.samples FILE or --data.scenes N")
    if data.limit is not None:
        rows = islice(rows, data.limit)
        total = data.limit if total is None else min(total, data.limit)
    return Source(rows, root, total)


def _draw(root: Path, num: int, seed: int) -> Iterator[SampleRow]:
    root.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes(num, seed=seed, split="pairs")):
        path = root / f"scene-{index:05d}.png"
        if not path.exists():
            partial = path.with_suffix(".partial")
            draw_scene(scene).save(partial, format="PNG")
            partial.replace(path)
        yield SampleRow(path.name, (MediaRef(path.name),))


def make_pairs(recipe: Recipe, run: RunDir) -> Summary:
    """Make the pairs of the recipe, or those that are still missing."""
    source = source_of(recipe)
    loaded = load_model(recipe.model)

    async def work() -> Summary:
        lm = LocalLM(loaded, max_batch_size=recipe.generate.batch_size)
        try:
            return await generate_async(
                recipe.method,
                source.rows,
                lm,
                run=run,
                data_root=source.root,
                seed=recipe.seed,
                limits=limits_of(recipe),
                concurrency=recipe.generate.concurrency,
                max_bad_share=recipe.generate.max_bad_share,
                progress=progress_on(),
                total=source.total,
            )
        finally:
            await lm.close()

    return asyncio.run(work())


def train(recipe: Recipe, run: RunDir) -> ModelSpec:
    """Train on the run's pairs; returns how to load the result. Raises StoreError when there are no pairs."""
    return _train(recipe, read_pairs(run.pairs_path()), recipe.objective, run.path / "train")


def _train(recipe: Recipe, rows: list[PairRow], objective: Objective, output: Path) -> ModelSpec:
    if not rows:
        raise StoreError(
            f"{recipe.output}: the run made no pairs, so there is nothing to train on; "
            f"`mmalign inspect {recipe.output}` shows why"
        )
    trainer = PreferenceTrainer(
        load_model(recipe.model),
        rows,
        objective,
        recipe.train,
        data_root=source_of(recipe).root,
        output=output,
        limits=limits_of(recipe),
    )
    trainer.train()
    return _spec_of(recipe, output)


def _spec_of(recipe: Recipe, output: Path) -> ModelSpec:
    """How to load what a training run left in `output`."""
    if recipe.train.lora is None:
        return replace(recipe.model, name=str(output / "model"), adapter=None)  # merged, if there was one
    return replace(recipe.model, adapter=str(output / "adapter"))


def trained(recipe: Recipe) -> ModelSpec:
    """How to load the run's trained model. Raises StoreError when there is none yet."""
    spec = _spec_of(recipe, recipe.output / "train")
    if not Path(spec.name if recipe.train.lora is None else str(spec.adapter)).is_dir():
        raise StoreError(f"{recipe.output}: holds no trained model; `mmalign train RECIPE` makes one")
    return spec


def evaluate(recipe: Recipe, run: RunDir, trained: ModelSpec) -> bool:
    """Measure before, after and the controls on held-out pictures; False when the recipe asks for no measuring.

    The control models are trained here, on the same pairs with the same settings. A table that was made with the same
    settings is kept.
    """
    settings = {key: recipe.resolved[key] for key in ("seed", "model", "objective", "train", "evaluate")}
    if is_measured(run.path, settings):
        return True
    items = evaluation_items(recipe.evaluate, seed=recipe.seed, limits=limits_of(recipe))
    if items is None:
        return False
    size = recipe.generate.batch_size
    table = Evaluation(recipe.evaluate, recipe.seed, items, settings)
    before = measure_model(table, "before", "before", recipe.model, size)
    after = measure_model(table, "after", "after", trained, size)
    if recipe.evaluate.controls:
        rows = read_pairs(run.pairs_path())
        folder = run.path / "controls"
        signs = _train(recipe, random_signs(rows, recipe.seed), recipe.objective, folder / "random_signs")
        measure_model(table, "random signs", "control", signs, size)
        likelihood = _train(recipe, rows, SFT(), folder / "sft")
        measure_model(table, "SFT on chosen", "control", likelihood, size)
        measure_texts(table, "cut as short", "control", table.cut_to(before, after))
    table.write(run.path)
    return True
