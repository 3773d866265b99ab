"""What `--dry-run` says of a recipe's verb: data counted, media opened, three samples' requests, steps to come.

No model runs and nothing is written: the method is driven over the first samples with a scripted model that answers
with a fixed sentence, so the requests shown are those that the method would really make first.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

from mmalign.cli import dry_training
from mmalign.engine.work import explain, method_name
from mmalign.errors import DataError, MediaError, NoPair, RecipeError, SampleError, one_line
from mmalign.lm.bound import SampleLM
from mmalign.lm.load import load_renderer
from mmalign.lm.render import Renderer
from mmalign.lm.scripted import ScriptedLM
from mmalign.media.read import open_media
from mmalign.methods import SurveyMethod, refuse_media
from mmalign.pipeline import held_out, limits_of, source_of
from mmalign.recipe.schema import Recipe
from mmalign.text.prompts import worded
from mmalign.tiny import draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened
from mmalign.types import Chat, MediaRef, Picture, Sample

NUM_SHOWN = 3
#: So many samples that cannot be opened are tried before a dry run gives up.
NUM_REFUSED = 20
#: Characters of a prompt.
MAX_SHOWN = 100


def report(verb: str, recipe: Recipe) -> None:
    """Print what the verb would do."""
    server = recipe.server
    if server.url is not None and verb in ("run", "generate"):
        print(f"\nserver: {server.url}, model {server.model or recipe.model.name} (not asked in a dry run)")
    if server.url is not None and verb == "generate":
        _generation(recipe, None)
        return
    renderer = load_renderer(recipe.model)
    video = "clips" if renderer.takes_videos else "clips frame by frame"
    print(f"\nmodel: {recipe.model.name}, {f'text, pictures and {video}' if renderer.is_multimodal else 'text only'}")
    if verb in ("run", "generate") and recipe.data.pairs is None:
        _generation(recipe, renderer if server.url is None else None)
    if verb in ("run", "train"):
        dry_training.report(recipe, renderer)
    if verb in ("run", "evaluate"):
        _evaluation(recipe)


def _generation(recipe: Recipe, renderer: Renderer | None) -> None:
    """Print the samples and first requests; their tokens are counted where there is a renderer."""
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
        num, first = _opened(recipe)
        print(f"samples: {num} from {_place(recipe)}")
    if told := _workers(recipe):
        print(f"workers: {told}")
    for sample in first:
        refuse_media(recipe.method, [medium.ref for medium in sample.media])  # drawn ones are all of one kind
        chats, end = asyncio.run(_requests(recipe, sample))
        told = f"{method_name(recipe.method)}, {one_line(sample.id)}"
        for prompt, chat in chats.items():
            if renderer is None:
                print(f"{told}: {len(chat.media)} media: {prompt}")
                continue
            try:
                tokens, of_media = renderer.count(chat)
            except SampleError as error:
                raise SampleError(f"{sample.id}: {error}") from error
            print(f"{told}: {tokens} tokens, {of_media} of them media: {prompt}")
        if end:
            print(f"{told}: {one_line(end)}")


def _workers(recipe: Recipe) -> str:
    """Who would make the pairs, where that is more than this process."""
    num = recipe.generate.workers
    if recipe.engine == "ray":
        where = recipe.generate.ray_address or os.environ.get("RAY_ADDRESS") or "this machine alone"
        return f"{num} Ray actors ({where})"
    return f"{num} processes on this machine" if num > 1 else ""


def _place(recipe: Recipe) -> Path | None:
    return recipe.data.images or recipe.data.videos or recipe.data.samples


def _opened(recipe: Recipe) -> tuple[int, list[Sample]]:
    """How many samples there are, and the first ones that the method can use; those before them are told.

    Raises DataError where none of the first samples can be used.
    """
    source = source_of(recipe)
    first: list[Sample] = []
    refused: list[str] = []
    num = 0
    for row in source.rows:
        num += 1
        if len(first) < NUM_SHOWN and len(refused) < NUM_REFUSED:
            try:
                refuse_media(recipe.method, row.media)
                first.append(open_media(row, source.root, limits_of(recipe)))
            except (MediaError, SampleError) as error:
                refused.append(str(error))
    if refused and not first:
        which = (
            f"none of its {num} samples"
            if num == len(refused)
            else f"none of the first {len(refused)} of {num} samples"
        )
        raise DataError(f"{_place(recipe)}: {which} can be used; the first: {refused[0]}")
    for reason in refused:
        print(f"would be quarantined: {reason}")
    return num, first


async def _requests(recipe: Recipe, sample: Sample) -> tuple[dict[str, Chat], str]:
    """The different chats that the method first asks about a sample, by what is shown of their prompts, and its end.

    The end is empty where the method comes to a pair. Raises RecipeError for what is wrong with every sample.
    """
    lm = ScriptedLM({"*": ("There is a cup. There is a book on the table.", "There is a dog. There is a tree.")})
    bound = SampleLM(lm, sample_id=sample.id, seed=recipe.seed)
    rng = random.Random(recipe.seed)
    # The scripted answers know nothing of the picture, so a method may find no pair in them or fail to read them.
    end = ""
    try:
        if isinstance(recipe.method, SurveyMethod):
            await recipe.method.survey(sample, bound, rng)
        else:
            made = [found async for found in recipe.method.pairs(sample, bound, rng)]
            dropped = [str(found) for found in made if isinstance(found, NoPair)]
            end = f"no pair from scripted answers ({dropped[0]})" if dropped and len(dropped) == len(made) else ""
    except RecipeError:
        raise
    except (NoPair, SampleError) as error:
        end = f"ends here with scripted answers ({error})"
    except MediaError as error:
        end = f"would be quarantined ({error})"
    except Exception as error:  # a user's method may fail in any way
        end = f"fails here with scripted answers ({explain(error, recipe.method)})"
    chats: dict[str, Chat] = {}
    for verb, chat in lm.asked:
        if verb == "generate":
            chats.setdefault(shorten(chat.prompt), chat)
    return chats, end


def shorten(prompt: str) -> str:
    """A prompt on one line, cut to its beginning."""
    line = one_line(" ".join(prompt.split()))
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 3]}..."


def _evaluation(recipe: Recipe) -> None:
    chosen = recipe.evaluate
    items = held_out(recipe)
    if items is None:
        print("evaluation: none; set evaluate.scenes, evaluate.clips or evaluate.labels")
        return
    drawn = f"{chosen.scenes} drawn scenes" if chosen.scenes else f"{chosen.clips} drawn clips"
    what = f"{drawn} ({chosen.split})" if chosen.labels is None else f"pictures of {chosen.labels}"
    task = worded(chosen.prompt, items.items[0].sample.media)
    print(f"evaluation: {what}{', with controls' if chosen.controls else ''}: {task}")
