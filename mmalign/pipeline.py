"""The whole loop of a recipe: samples -> pairs -> model -> numbers -> page. Each step goes on where it was."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.atomic import explained, replacing, write_json, writing_bytes
from mmalign.engine import RunDir, Summary, generate_async, progress_on
from mmalign.engine.crew import Crew
from mmalign.engine.models import open_on_machine, open_on_node, wants_gpu
from mmalign.engine.processes import Processes
from mmalign.engine.rays import RayCluster
from mmalign.engine.remote import RemoteCrew
from mmalign.engine.rundir import RECIPE_NAME, differences
from mmalign.errors import RecipeError, StoreError
from mmalign.evaluate.controls import random_signs
from mmalign.evaluate.table import Evaluation, Items, evaluation_items, is_measured, measure_model, measure_texts
from mmalign.lm.load import load_model
from mmalign.lm.opening import open_lm
from mmalign.lm.spec import ModelSpec
from mmalign.media.frames import FrameChoice
from mmalign.media.image import PictureLimits, file_sha256
from mmalign.media.read import MediaLimits
from mmalign.media.video import ClipLimits
from mmalign.objectives import SFT, Objective
from mmalign.pairs import PairRow, read_pairs, write_pairs
from mmalign.recipe.schema import FREE_KEYS, Recipe
from mmalign.recorded import with_sha256
from mmalign.samples import data_folder, read_samples
from mmalign.tiny import draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import write_film
from mmalign.train.config import FREE_KEYS as TRAIN_FREE_KEYS
from mmalign.train.distributed.launch import ALONE, Launch, shares_weights
from mmalign.train.stages import train_pairs
from mmalign.types import MediaRef, SampleRow

log = logging.getLogger("mmalign")

#: Beside a trained model: the settings that its weights depend on.
MADE_WITH = "train/made_with.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, the folder that their media paths start from, and how many there are, where that is known."""

    rows: Iterable[SampleRow]
    root: Path
    total: int | None = None


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
            _refuse_other_training(recipe, run)
        run.begin(recipe.resolved, free=FREE_KEYS)
    except StoreError:
        run.close()
        raise
    return run


def has_begun(run: RunDir) -> bool:
    """Whether there is a training that would be gone on with, or that is done."""
    folder = run.path / "train"
    return (run.path / MADE_WITH).is_file() and (
        (folder / "result.json").exists() or any(folder.rglob("checkpoints/step-*"))
    )


def _refuse_other_training(recipe: Recipe, run: RunDir) -> None:
    begun = json.loads((run.path / MADE_WITH).read_text(encoding="utf-8"))
    if changed := differences(begun, _training_settings(recipe, run)):
        raise StoreError(
            f"{run.path}: its model was trained with other settings ({'; '.join(changed.values())}); "
            "put the old values back or name another output"
        )


def _refuse_missing(recipe: Recipe) -> None:
    for key in ("images", "videos", "samples", "pairs", "media_root"):
        path: Path | None = getattr(recipe.data, key)
        if path is not None and not path.exists():
            raise RecipeError(f"data.{key}: {path}: no such file or folder")


def limits_of(recipe: Recipe) -> MediaLimits:
    """What the recipe lets media be, and which frames of its videos it takes."""
    data = recipe.data
    return MediaLimits(
        picture=PictureLimits(max_pixels=data.max_pixels, max_side=data.max_side, decode_seconds=data.decode_seconds),
        clip=ClipLimits(
            max_pixels=data.max_pixels,
            max_side=data.max_frame_side,
            max_seconds=data.max_seconds,
            decoder=data.decoder,
            decode_seconds=data.decode_seconds,
        ),
        frames=FrameChoice(num_frames=data.num_frames, fps=data.fps),
    )


def source_of(recipe: Recipe) -> Source:
    """The samples that the recipe names; drawn scenes are drawn into the run directory first.

    Raises RecipeError when the recipe names no source.
    """
    data = recipe.data
    root = root_of(recipe)
    if data.scenes:
        total = data.scenes
        rows: Iterable[SampleRow] = _draw(root, data.scenes, recipe.seed)
    elif data.clips:
        total = data.clips
        rows = _film(root, data.clips, recipe.seed, data.num_frames)
    else:
        samples = read_samples(_path_of(recipe), data.limit, kind="video" if data.videos else "image")
        return Source(samples, root, samples.total)
    if data.limit is not None:
        rows = islice(rows, data.limit)
        total = min(total, data.limit)
    return Source(rows, root, total)


def root_of(recipe: Recipe) -> Path:
    """The folder that media paths of the recipe's samples start from."""
    if recipe.data.scenes or recipe.data.clips:
        return recipe.output / ("scenes" if recipe.data.scenes else "clips")
    return recipe.data.media_root or data_folder(recipe.data.pairs or _path_of(recipe))


def _path_of(recipe: Recipe) -> Path:
    path = recipe.data.images or recipe.data.videos or recipe.data.samples
    if path is None:
        raise RecipeError(
            "data: no source; give --data.images DIR, --data.videos DIR, --data.samples FILE, "
            "--data.scenes N, --data.clips N or, to train on pairs that are there, --data.pairs FILE"
        )
    return path


def _draw(root: Path, num: int, seed: int) -> Iterator[SampleRow]:
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes(num, seed=seed, split="pairs")):
        path = root / f"scene-{index:05d}.png"
        if not path.exists():
            with writing_bytes(path) as stream:
                draw_scene(scene).save(stream, format="PNG")
        yield SampleRow(path.name, (MediaRef(path.name),))


def _film(root: Path, num: int, seed: int, num_frames: int) -> Iterator[SampleRow]:
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
    for index, drawn in enumerate(clips(num, seed=seed, split="pairs")):
        path = root / f"clip-{index:05d}.mkv"
        if not path.exists():
            with replacing(path) as partial:
                write_film(drawn, num_frames, partial)
        yield SampleRow(path.name, (MediaRef(path.name, "video"),))


def make_pairs(recipe: Recipe, run: RunDir) -> Summary:
    """Make the pairs of the recipe, or those that are still missing; take those of `data.pairs` as they are."""
    if recipe.data.pairs is not None:
        return take_pairs(recipe.data.pairs, recipe.data.limit, root_of(recipe), run)
    source = source_of(recipe)
    crew = crew_of(recipe)
    lm = crew or open_lm(recipe.model, batch_size=recipe.generate.batch_size, server=recipe.server)

    async def work() -> Summary:
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
                retry_quarantined=recipe.generate.retry_quarantined,
                progress=progress_on(),
                total=source.total,
            )
        finally:
            if not isinstance(lm, Crew):
                await lm.close()

    return asyncio.run(work())


def crew_of(recipe: Recipe) -> Crew | None:
    """The workers of a recipe that has more than this process."""
    generate, model, server = recipe.generate, recipe.model, recipe.server
    if recipe.engine == "ray":
        cluster = RayCluster(
            generate.ray_address,
            cpus=generate.cpus_per_worker or 1.0,
            gpus=generate.gpus_per_worker,
            wants_gpu=wants_gpu(model, server),
        )
        opener = partial(open_on_node, model=model, batch_size=generate.batch_size, server=server)
        return RemoteCrew(cluster, opener, generate.workers, hung_s=generate.hung_s)
    for key in ("ray_address", "gpus_per_worker"):
        if getattr(generate, key) is not None:
            log.warning("generate.%s counts with engine: ray only; this run is made on this machine", key)
    if generate.workers == 1:
        return None
    opener = partial(open_on_machine, model=model, batch_size=generate.batch_size, server=server)
    return RemoteCrew(Processes(generate.cpus_per_worker), opener, generate.workers, hung_s=generate.hung_s)


def take_pairs(path: Path, limit: int | None, root: Path, run: RunDir) -> Summary:
    """Put the pairs of a file into the run, with the sums of their media below `root`.

    Raises StoreError for a file that is no pair file, and for other pairs than those that a training was begun with.
    """
    rows = with_sha256(read_pairs(path)[:limit], root)
    if has_begun(run) and rows != read_pairs(run.pairs_path()):
        raise StoreError(
            f"{run.path}: its training was begun with other pairs than those of {path}; name another output"
        )
    run.round_path(0)
    write_pairs(run.pairs_path(), rows)
    return Summary(done=len({row.sample_id for row in rows}), pairs=len(rows))


def train(recipe: Recipe, run: RunDir, launch: Launch = ALONE) -> ModelSpec:
    """Train on the run's pairs; returns how to load the result. Raises StoreError when there are no pairs."""
    rows = read_pairs(run.pairs_path())

    def record() -> None:
        with explained(run.path / MADE_WITH):
            (run.path / MADE_WITH).parent.mkdir(exist_ok=True)
        write_json(run.path / MADE_WITH, _training_settings(recipe, run))

    launch.by_first(record)
    return _train(recipe, rows, recipe.objective, run.path / "train")


def _train(recipe: Recipe, rows: list[PairRow], objective: Objective, output: Path) -> ModelSpec:
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


def _training_settings(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """What the trained weights depend on: the model, the pairs, the objective and how it was trained."""
    train = {key: value for key, value in recipe.resolved["train"].items() if key not in TRAIN_FREE_KEYS}
    model = {key: value for key, value in recipe.resolved["model"].items() if key not in ("device", "download")}
    pairs = file_sha256(run.pairs_path())
    return {"model": model, "objective": recipe.resolved["objective"], "train": train, "pairs": pairs}


def trained(recipe: Recipe, run: RunDir) -> ModelSpec:
    """How to load the run's trained model. Raises StoreError when there is none, or one of other settings."""
    if not has_begun(run) or not (run.path / "train" / "result.json").exists():
        raise StoreError(f"{run.path}: holds no trained model; `mmalign train RECIPE` makes one")
    _refuse_other_training(recipe, run)
    return _spec_of(recipe, run.path / "train")


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
    settings = _training_settings(recipe, run) | {key: recipe.resolved[key] for key in ("seed", "evaluate")}
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
        signs = _train(recipe, random_signs(rows, recipe.seed), recipe.objective, folder / "random_signs")
        measured("random signs", "control", signs)
        likelihood = _train(recipe, rows, SFT(), folder / "sft")
        measured("SFT on chosen", "control", likelihood)
        launch.by_first(lambda: measure_texts(table, "cut as short", "control", table.cut_to(before, after)))
    launch.by_first(lambda: table.write(run.path))
    return True
