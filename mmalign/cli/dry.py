"""What `--dry-run` says of a recipe's verb: data counted, media opened, three samples' requests, steps to come.

No model runs and nothing is written: the method is driven over the first samples with a scripted model that answers
with a fixed sentence, so the requests shown are those that the method would really make first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import torch

from mmalign.engine.work import method_name
from mmalign.errors import MediaError, SampleError
from mmalign.lm.bound import SampleLM
from mmalign.lm.load import load_renderer
from mmalign.lm.render import Renderer
from mmalign.lm.scripted import ScriptedLM
from mmalign.media.read import open_media
from mmalign.methods import SurveyMethod
from mmalign.pairs import PairRow, read_pairs
from mmalign.pipeline import held_out, limits_of, root_of, source_of
from mmalign.recipe.schema import Recipe
from mmalign.tiny import draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.modality import modality
from mmalign.types import Chat, MediaRef, Picture, Sample

NUM_SHOWN = 3


def report(verb: str, recipe: Recipe) -> None:
    """Print what the verb would do."""
    renderer = load_renderer(recipe.model)
    video = "clips" if renderer.takes_videos else "clips frame by frame"
    print(f"\nmodel: {recipe.model.name}, {f'text, pictures and {video}' if renderer.is_multimodal else 'text only'}")
    if verb in ("run", "generate"):
        _generation(recipe, renderer)
    if verb in ("run", "train"):
        _training(recipe, renderer)
    if verb in ("run", "evaluate"):
        _evaluation(recipe)


def _generation(recipe: Recipe, renderer: Renderer) -> None:
    if recipe.data.scenes:
        num = min(recipe.data.scenes, recipe.data.limit or recipe.data.scenes)
        first = [
            Sample(f"scene-{index:05d}.png", (Picture(draw_scene(scene), MediaRef(f"scene-{index:05d}.png")),))
            for index, scene in enumerate(scenes(min(num, NUM_SHOWN), seed=recipe.seed, split="pairs"))
        ]
        print(f"samples: {num} drawn scenes")
    elif recipe.data.clips:
        num = min(recipe.data.clips, recipe.data.limit or recipe.data.clips)
        names = [f"clip-{index:05d}.mkv" for index in range(min(num, NUM_SHOWN))]
        films = clips(len(names), seed=recipe.seed, split="pairs")
        frames = recipe.data.num_frames
        first = [Sample(name, (opened(film, frames, name),)) for name, film in zip(names, films, strict=True)]
        print(f"samples: {num} drawn clips of {frames} frames")
    else:
        source = source_of(recipe)
        num, first = 0, []
        for row in source.rows:
            num += 1
            if len(first) < NUM_SHOWN:
                try:
                    first.append(open_media(row, source.root, limits_of(recipe)))
                except MediaError as error:
                    print(f"would be quarantined: {error}")
        print(f"samples: {num} from {recipe.data.images or recipe.data.videos or recipe.data.samples}")
    name = method_name(recipe.method)
    for sample in first:
        for chat in asyncio.run(_requests(recipe, sample)):
            try:
                tokens, of_media = renderer.count(chat)
            except SampleError as error:
                raise SampleError(f"{sample.id}: {error}") from error
            print(f"{name}, {sample.id}: {tokens} tokens, {of_media} of them media: {chat.prompt}")


async def _requests(recipe: Recipe, sample: Sample) -> list[Chat]:
    """The different chats that the method first asks about a sample."""
    lm = ScriptedLM({"*": ("There is a cup. There is a book on the table.", "There is a dog. There is a tree.")})
    bound = SampleLM(lm, sample_id=sample.id, seed=recipe.seed)
    rng = random.Random(recipe.seed)
    # The scripted answers know nothing of the picture, so a method may find no pair in them or fail to read them.
    with suppress(Exception):
        if isinstance(recipe.method, SurveyMethod):
            await recipe.method.survey(sample, bound, rng)
        else:
            async for _ in recipe.method.pairs(sample, bound, rng):
                pass
    seen = {chat.prompt: chat for verb, chat in lm.asked if verb == "generate"}
    return list(seen.values())


def _training(recipe: Recipe, renderer: Renderer) -> None:
    path = recipe.output / "round-0" / "pairs.parquet"
    train = recipe.train
    what = "full training" if train.lora is None else f"LoRA of rank {train.lora.rank}"
    if path.is_file():
        rows = read_pairs(path)
        steps = train.epochs * math.ceil(len(rows) / train.batch_size)
        print(f"training: {what} on {len(rows)} pairs, {steps} steps of {train.batch_size}")
        _lengths(recipe, rows, renderer)
    else:
        print(f"training: {what}, {train.batch_size} pairs per step; {path} does not exist yet")


def _lengths(recipe: Recipe, rows: Sequence[PairRow], renderer: Renderer) -> None:
    """Tokens of the first pairs of every kind, with their media opened and counted as in training.

    Raises TrainError or MediaError, naming the pair, for one that could not be trained on.
    """
    collate = Collator(renderer, root_of(recipe), limits_of(recipe))
    shown: Counter[str] = Counter()
    for row in rows:
        kind = modality(row, renderer)
        shown[kind] += 1
        if shown[kind] <= NUM_SHOWN:
            batch = collate([row])
            tokens, most = int(batch.lengths.max()), recipe.train.max_length
            fate = f", over train.max_length ({most})" if most is not None and tokens > most else ""
            print(f"pair {row.id} ({kind}): {tokens} tokens, {_num_media(batch, renderer)} of them media{fate}")


def _num_media(batch: PairBatch, renderer: Renderer) -> int:
    """Placeholder tokens of the side that has most."""
    return int(torch.isin(batch.inputs["input_ids"], torch.tensor(renderer.media_ids)).sum(-1).max())


def _evaluation(recipe: Recipe) -> None:
    chosen = recipe.evaluate
    held_out(recipe)
    if chosen.labels is None and not chosen.scenes and not chosen.clips:
        print("evaluation: none; set evaluate.scenes, evaluate.clips or evaluate.labels")
        return
    drawn = f"{chosen.scenes} drawn scenes" if chosen.scenes else f"{chosen.clips} drawn clips"
    what = f"{drawn} ({chosen.split})" if chosen.labels is None else f"pictures of {chosen.labels}"
    print(f"evaluation: {what}{', with controls' if chosen.controls else ''}: {chosen.prompt}")
