"""How far logits of a model move with the batch, how often that opens a decision, and what becomes of answers.

    python -m benchmarks.stability --output docs/results/stability.json      # some minutes on two cores

Three parts. Noise: float32 logits of many batch shapes against exact ones (float64), for the embedded model and random
models of other families, as a share of a row's largest logit; `mmalign/lm/stable.py` allows for a multiple of that.
Open decisions: how many tokens and choices are made again from exact logits, and what that costs. Answers: the same
requests at batch sizes 1 and 64, in float32 and in bfloat16, and at batch size 1 in another order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmalign.lm import sampling
from mmalign.lm.batch import BatchModel
from mmalign.lm.exact import Exact
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.protocol import YES_NO
from mmalign.lm.spec import ModelSpec
from mmalign.lm.stable import CHOICE_SLACK, FINE_GRID, GRID, SLACK
from mmalign.text.prompts import DETAIL
from mmalign.tiny import draw_scene, scenes
from mmalign.types import Chat, MediaRef, Message, Picture, Sampling
from tests.models import READING, SEEING, WATCHING, clip, tiny

DRAWN = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=64)
THINGS = ("boat", "fish", "crab", "tree", "red ball", "lighthouse")
Row = dict[str, Any]


def chats_of(loaded: Loaded, questions: Sequence[str], number: int) -> list[Chat]:
    """The questions about each of `number` pictures, or clips where the name says so, or in words alone."""
    if not loaded.renderer.is_multimodal:
        return [Chat((Message("user", (f"{n}. {text}",)),)) for n in range(number) for text in questions]
    shown: list[Any] = [clip(n) for n in range(number)]
    if not loaded.renderer.takes_videos or loaded.name == "tiny":
        shown = [Picture(draw_scene(scene), MediaRef("")) for scene in scenes(number, seed=5, split="pairs")]
    return [Chat((Message("user", (medium, text)),)) for medium in shown for text in questions]


# Noise ---------------------------------------------------------------------------------------------------------------


def noise(loaded: Loaded, number: int) -> Row:
    """Largest errors of float32 logits, each as a share of the largest logit of its row."""
    model = BatchModel(loaded)
    questions = [f"Is there a {thing} in the picture? Answer yes or no." for thing in THINGS]
    prompts = [model.prompt(chat) for chat in chats_of(loaded, questions, number)]
    exact = Exact(loaded.name, loaded.model)
    alone = torch.stack([_next(model, [prompt], exact)[0] for prompt in prompts])
    together = torch.stack(_next(model, prompts, exact))
    scale = alone.abs().amax(1, keepdim=True)
    tokens = [0, 1, 2, 3] if loaded.name != "tiny" else loaded.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    worst = choice = 0.0
    for size in (1, 3, 7, 64):
        for order in (prompts, prompts[::-1]):
            cut = [order[at : at + size] for at in range(0, len(order), size)]
            for side in ("right", "left"):
                found = torch.stack([row for part in cut for row in model.next_logits(part, side)])
                off = (found if order is prompts else found.flip(0)).double() - alone
                worst = max(worst, float((off.abs() / scale).max()))
                odds = off[:, tokens] - off[:, tokens[:1]]
                mass = (alone + off).log_softmax(1)[:, tokens].logsumexp(1) - alone.log_softmax(1)[:, tokens].logsumexp(
                    1
                )
                choice = max(choice, float((odds.abs() / scale).max()), float((mass.abs() / scale[:, 0]).max()))
    return {
        "next token": worst,
        "choice": choice,
        "while writing": _noise_while_writing(model, prompts[:: len(THINGS)]),
        "float64": float(((together - alone).abs() / scale).max()),
    }


def _next(model: BatchModel, prompts: Sequence[Any], exact: Exact) -> list[Tensor]:
    found = exact(lambda: [row.clone() for row in model._next_each(prompts, "right")])
    assert found is not None
    return found


def _noise_while_writing(model: BatchModel, prompts: Sequence[Any]) -> float:
    """The same for answers written together, at every step."""
    worst = 0.0

    def note(self: Exact, exact: Tensor, found: Tensor) -> None:
        nonlocal worst
        worst = max(worst, float((exact - found).abs().max() / exact.abs().max()))

    always = mock.patch.object(sampling, "largest", lambda logits: torch.full_like(logits[:, :1], torch.inf))
    with always, mock.patch.object(Exact, "compare", note):
        short = Sampling(temperature=1.0, max_new_tokens=24)
        model.generate(prompts, [short] * len(prompts), list(range(len(prompts))))
    return worst


# Open decisions ------------------------------------------------------------------------------------------------------


async def answers(lm: LocalLM, chats: dict[int, Chat], questions: Sequence[Chat]) -> tuple[list[str], list[float]]:
    """Answers to numbered chats, and P(yes) of questions, asked all at once."""
    said = [lm.generate(chat, DRAWN, seed=number) for number, chat in chats.items()]
    texts = await asyncio.gather(*said)
    chosen = await asyncio.gather(*(lm.choose(question, YES_NO) for question in questions))
    return [completion.text for completion in texts], [choice.probabilities[0] for choice in chosen]


def asked(
    loaded: Loaded, size: int, order: Sequence[int], number: int
) -> tuple[dict[int, str], dict[tuple[int, int], float]]:
    """What is answered about `number` pictures, asked in this order, at most `size` at once."""
    texts = [f"Is there a {thing} in the picture? Answer yes or no." for thing in THINGS]
    pictures, each = chats_of(loaded, DETAIL[:1], number), chats_of(loaded, texts, number)

    async def run() -> tuple[list[str], list[float]]:
        async with LocalLM(loaded, max_batch_size=size) as lm:
            questions = [each[n * len(texts) + k] for n in order for k in range(len(texts))]
            return await answers(lm, {n: pictures[n] for n in order}, questions)

    written, beliefs = asyncio.run(run())
    places = [(n, k) for n in order for k in range(len(texts))]
    return dict(zip(order, written, strict=True)), dict(zip(places, beliefs, strict=True))


@contextmanager
def counted(owner: Any, name: str, counts: Row) -> Iterator[None]:
    """Counts calls and processor seconds of a method."""
    real: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return real(*args, **kwargs)
        finally:
            counts["seconds"] = counts.get("seconds", 0.0) + time.thread_time() - began
            counts["calls"] = counts.get("calls", 0) + 1

    with mock.patch.object(owner, name, timed):
        yield


def open_decisions(loaded: Loaded, number: int) -> Row:
    """How often logits were asked for again, and the processor time of that beside all."""
    steps, again, whole, chosen, settling = {}, {}, {}, {}, {}
    tokens = 0
    real = sampling.is_settled

    def noted(scores: Tensor, *rest: Any) -> Tensor:
        nonlocal tokens
        tokens += len(scores)
        return real(scores, *rest)

    with (
        mock.patch.object(sampling, "is_settled", noted),
        counted(sampling.RowwiseSampling, "_open", settling),
        counted(sampling.RowwiseSampling, "_judged", steps),
        counted(BatchModel, "_exact_next", again),
        counted(BatchModel, "generate", whole),
        counted(BatchModel, "choice", chosen),
        counted(BatchModel, "next_logits", choices := {}),
    ):
        asked(loaded, 64, range(number), number)
    num_written = again["calls"] - (open_choices := _open_choices(loaded, number))
    return {
        "tokens": tokens,
        "open tokens": num_written,
        "seconds of writing": whole["seconds"],
        "of that looking for open tokens": settling["seconds"],
        "of that settling them": steps.get("seconds", 0.0),
        "choices": chosen["calls"],
        "open choices": open_choices,
        "seconds of choosing": choices["seconds"] + chosen["seconds"],
        "of that settling": chosen["seconds"],
    }


def _open_choices(loaded: Loaded, number: int) -> int:
    again: Row = {}
    nothing = mock.patch.object(sampling, "is_settled", lambda scores, *_: torch.ones(len(scores), dtype=torch.bool))
    with nothing, counted(BatchModel, "_exact_next", again):
        asked(loaded, 64, range(number), number)
    return int(again.get("calls", 0))


# Answers -------------------------------------------------------------------------------------------------------------


def compared(loaded: Loaded, number: int) -> Row:
    """Shares of answers and beliefs that are not the same for other batch sizes and orders."""
    shuffled = random.Random(1).sample(range(number), number)
    one, other, many = (
        asked(loaded, size, order, number) for size, order in ((1, range(number)), (1, shuffled), (64, shuffled))
    )

    def shares(first: Any, second: Any) -> Row:
        beliefs = [abs(first[1][key] - second[1][key]) for key in first[1]]
        return {
            "texts": sum(first[0][key] != second[0][key] for key in first[0]) / number,
            "beliefs": sum(off > 0 for off in beliefs) / len(beliefs),
            "largest change of a belief": max(beliefs),
        }

    return {"size 1 and 64": shares(one, many), "size 1, two orders": shares(one, other)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    options = parser.parse_args()
    found: Row = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pictures": options.pictures,
        "slack": {"token": SLACK, "choice": CHOICE_SLACK, "choice grid": GRID, "score grid": FINE_GRID},
    }
    with torch.inference_mode():
        names = list(dict.fromkeys((*READING, *SEEING, *WATCHING)))
        found["noise"] = {name: noise(tiny(name), 4) for name in names if name != "tiny"}
        found["noise"]["tiny"] = noise(load_model(ModelSpec()), 16)
    found["open"] = open_decisions(load_model(ModelSpec()), options.pictures)
    found["answers"] = {
        kind: compared(load_model(ModelSpec(dtype=kind)), options.pictures) for kind in ("float32", "bfloat16")
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
