"""How much of `model.generate` is left when many coroutines ask one by one: LocalLM against batches made by hand.

Both answer the same requests (a picture and a prompt each) from chat to text. By hand means: requests sorted by length,
cut into batches of one size, `model.generate` on each; sizes are swept and the fastest one taken. LocalLM is asked for
all requests at once, unsorted. Runs alternate in one process; greedy texts must be equal. On a machine that does other
work, too, read the processor seconds rather than the wall clock.

    python -m benchmarks.lm_throughput           # the embedded model (a random one of its kind where it is missing)
    python -m benchmarks.lm_throughput --model DIR --requests 64 --max-new-tokens 128 --temperature 1.0

Goal: ratio of medians at least 0.90.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmalign.errors import ModelError
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.spec import ModelSpec
from mmalign.text.prompts import DETAIL, PLAIN
from mmalign.types import Chat, MediaRef, Message, Picture, Sampling


def load(name: str) -> Loaded:
    try:
        return load_model(ModelSpec(name=name))
    except ModelError:
        if name != "tiny":
            raise
        from tests.models import large

        print("the embedded model is missing; a random Qwen3-VL of its size stands in")
        return large()


def make_chats(loaded: Loaded, number: int) -> list[Chat]:
    rng = random.Random(0)
    chats = []
    for index in range(number):
        blocks = Image.frombytes("RGB", (4, 4), rng.randbytes(48)).resize((64, 64), Image.Resampling.NEAREST)
        media = (Picture(blocks, MediaRef(f"{index}.png")),) if loaded.renderer.is_multimodal else ()
        chats.append(Chat((Message("user", (*media, rng.choice(DETAIL + PLAIN))),)))
    return chats


def by_hand(loaded: Loaded, chats: Sequence[Chat], size: int, sampling: Sampling) -> list[str]:
    renderer, model = loaded.renderer, loaded.model
    texts = [renderer.prompt(chat) for chat in chats]
    order = sorted(range(len(chats)), key=lambda i: len(texts[i]))
    answers = [""] * len(chats)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            media = [chats[i].media for i in part]
            inputs = renderer.encode([texts[i] for i in part], media, "left").to(model.device)
            out = model.generate(
                **inputs,
                do_sample=sampling.temperature > 0,
                temperature=sampling.temperature or None,
                top_k=0 if sampling.temperature else None,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=renderer.tokenizer.pad_token_id,
                eos_token_id=renderer.tokenizer.eos_token_id,
            )
            decoded = renderer.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(part, decoded, strict=True):
                answers[i] = renderer.strip_lead(text)
    return answers


async def by_asking(lm: LocalLM, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
    done = await asyncio.gather(*(lm.generate(chat, sampling, seed=i) for i, chat in enumerate(chats)))
    return [completion.text for completion in done]


def timed(run: Callable[[], list[str]]) -> tuple[float, float, list[str]]:
    """Wall seconds, processor seconds of all threads, and what was answered."""
    start, start_cpu = time.perf_counter(), time.process_time()
    texts = run()
    return time.perf_counter() - start, time.process_time() - start_cpu, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    options = parser.parse_args()

    loaded = load(options.model)
    chats = make_chats(loaded, options.requests)
    sampling = Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens)
    print(
        f"{loaded.name} on {loaded.model.device}, {torch.get_num_threads()} threads, {len(chats)} requests, {sampling}"
    )

    by_hand(loaded, chats[:4], 4, sampling)  # warm up
    sweep = {
        size: min(timed(lambda s=size: by_hand(loaded, chats, s, sampling))[0] for _ in range(2))
        for size in options.sizes
    }
    best = min(sweep, key=lambda size: sweep[size])
    print("by hand, best of 2: " + ", ".join(f"size {size}: {seconds:.2f} s" for size, seconds in sweep.items()))

    lm = LocalLM(loaded, max_batch_size=best)
    asyncio.run(by_asking(lm, chats[:4], sampling))  # warm up
    hand: list[tuple[float, float]] = []
    asked: list[tuple[float, float]] = []
    for repeat in range(options.repeats):
        runs = [
            (hand, lambda: by_hand(loaded, chats, best, sampling)),
            (asked, lambda: asyncio.run(by_asking(lm, chats, sampling))),
        ]
        texts = []
        for times, run in runs if repeat % 2 == 0 else runs[::-1]:
            wall, cpu, answers = timed(run)
            times.append((wall, cpu))
            texts.append(answers)
        if sampling.temperature == 0:
            assert texts[0] == texts[1], "greedy texts differ"
    asyncio.run(lm.close())
    print(f"size {best}, medians of {options.repeats}:")
    for number, clock in enumerate(("wall clock", "processor")):
        by = [statistics.median(times[number] for times in rows) for rows in (hand, asked)]
        print(
            f"  {clock}: by hand {by[0]:.3f} s, LocalLM {by[1]:.3f} s, ratio {by[0] / by[1]:.3f} (goal: at least 0.90)"
        )


if __name__ == "__main__":
    main()
