"""The samples of a recipe: what it names, or what is drawn for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mmalign.atomic import explained, replacing, writing_bytes
from mmalign.errors import RecipeError
from mmalign.media.frames import FrameChoice
from mmalign.media.image import PictureLimits
from mmalign.media.read import MediaLimits
from mmalign.media.video import ClipLimits
from mmalign.recipe.schema import Recipe
from mmalign.samples import data_folder, read_samples
from mmalign.tiny import draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import write_film
from mmalign.types import MediaRef, SampleRow


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, the folder that their media paths start from, and how many there are, where that is known."""

    rows: Iterable[SampleRow]
    root: Path
    total: int | None = None


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
