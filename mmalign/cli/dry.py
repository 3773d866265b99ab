"""What `--dry-run` says of a recipe's verb: data counted, media opened, three samples' requests, steps to come.

No model runs and nothing is written: the method is driven over the first samples with a scripted model that answers
with a fixed sentence, so the requests shown are those that the method would really make first.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress

from mmalign.engine.work import method_name
from mmalign.errors import MediaError
from mmalign.lm.bound import SampleLM
from mmalign.lm.load import load_processor
from mmalign.lm.render import Renderer
from mmalign.lm.scripted import ScriptedLM
from mmalign.media.read import open_media
from mmalign.methods import SurveyMethod
from mmalign.pairs import read_pairs
from mmalign.pipeline import held_out, limits_of, source_of
from mmalign.recipe.schema import Recipe
from mmalign.tiny import draw_scene, scenes
from mmalign.types import Chat, MediaRef, Picture, Sample

NUM_SHOWN = 3


def report(verb: str, recipe: Recipe) -> None:
    """Print what the verb would do."""
    renderer = Renderer(load_processor(recipe.model))
    print(f"\nmodel: {recipe.model.name}, {'pictures and text' if renderer.is_multimodal else 'text only'}")
    if verb in ("run", "generate"):
        _generation(recipe, renderer)
    if verb in ("run", "train"):
        _training(recipe)
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
        print(f"samples: {num} from {recipe.data.images or recipe.data.samples}")
    name = method_name(recipe.method)
    for sample in first:
        for chat in asyncio.run(_requests(recipe, sample)):
            text = renderer.prompt(chat)
            tokens = renderer.num_tokens(text, [media.image for media in chat.media])
            print(f"{name}, {sample.id}: {tokens} tokens: {chat.prompt}")


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


def _training(recipe: Recipe) -> None:
    path = recipe.output / "round-0" / "pairs.parquet"
    train = recipe.train
    what = "full training" if train.lora is None else f"LoRA of rank {train.lora.rank}"
    if path.is_file():
        num = len(read_pairs(path))
        steps = train.epochs * math.ceil(num / train.batch_size)
        print(f"training: {what} on {num} pairs, {steps} steps of {train.batch_size}")
    else:
        print(f"training: {what}, {train.batch_size} pairs per step; {path} does not exist yet")


def _evaluation(recipe: Recipe) -> None:
    chosen = recipe.evaluate
    held_out(recipe)
    if chosen.labels is None and not chosen.scenes:
        print("evaluation: none; set evaluate.scenes or evaluate.labels")
        return
    what = f"{chosen.scenes} drawn scenes ({chosen.split})" if chosen.labels is None else f"pictures of {chosen.labels}"
    print(f"evaluation: {what}{', with controls' if chosen.controls else ''}: {chosen.prompt}")
