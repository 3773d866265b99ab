"""Forward and backward of preference pairs: prompts computed once for all answers to them, against once for each.

Random weights of stock classes, narrow but with the token shares of real runs: a picture of hundreds of tokens, a
question, answers of `--answer` tokens. `--completions` K answers stand behind every prompt, as K / 2 pairs. Both roads
take the same pairs through collator, model and objective; they alternate in one process, their losses must be equal.
The bound is what linear layers alone would gain: tokens of the one over tokens of the other.

    python -m benchmarks.train_step                                  # Qwen2.5-VL and LLaVA, one picture, two answers
    python -m benchmarks.train_step --side 44 --completions 8        # a prompt of 2,000 tokens, eight answers

On a machine that does other work, too, read the ratios of processor seconds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmalign.lm.load import Loaded
from mmalign.media.files import file_sha256
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO
from mmalign.pairs import PairRow
from mmalign.train.collate import Collator
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.logps import completion_logps
from mmalign.train.step import loss_inputs
from mmalign.train.weights import trainable, training_mode
from mmalign.types import Chat, MediaRef, Message, Picture
from tests.models import LLAVA_TEMPLATE, _qwen_vl, picture, tokenizer

#: Edge of a picture's token in pixels, and the language model's width and layers.
EDGE, WIDTH, LAYERS = 16, 256, 4


def qwen(side: int) -> Loaded:
    """A Qwen2.5-VL that gives `side` x `side` tokens to a picture of that many token edges."""
    narrow = _qwen_vl("2.5", width=WIDTH, layers=LAYERS)
    config = narrow.model.config
    config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    narrow.processor.image_processor.size = {"shortest_edge": EDGE**2, "longest_edge": (side * EDGE) ** 2}
    return Loaded(Qwen2_5_VLForConditionalGeneration(config), narrow.processor, "qwen2.5-vl-random")


def llava(side: int) -> Loaded:
    """A LLaVA that gives `side` x `side` tokens to every picture."""
    tok = tokenizer(None)
    size = side * EDGE
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=size,
        patch_size=EDGE,
    )
    text = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
    )
    image = tok.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=image, vision_feature_layer=-1)
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tok,
        patch_size=EDGE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return Loaded(LlavaForConditionalGeneration(config), processor, "llava-random")


MODELS: dict[str, Callable[[int], Loaded]] = {"qwen2.5-vl": qwen, "llava": llava}


def pairs(root: Path, samples: int, side: int, completions: int, answer: int) -> list[PairRow]:
    """`completions` / 2 pairs about each of `samples` pictures, with answers of about `answer` tokens."""
    words = ("red boat", "blue fish", "small tree", "big crab", "left", "right", "top")
    rows = []
    for sample in range(samples):
        path = root / f"{sample}.png"
        picture(sample, size=(side * EDGE, side * EDGE)).image.save(path)
        shown = Picture(picture().image, MediaRef(path.name, sha256=file_sha256(path)))
        context = Chat((Message("user", (shown, "Describe the picture in detail.")),)).to_rows()
        texts = [
            " ".join(words[(sample + n + i * (n + 1)) % 7] for i in range(answer // 2)) for n in range(completions)
        ]
        for n in range(0, completions, 2):
            name = f"s{sample}#{n}"
            rows.append(
                PairRow(
                    id=name,
                    sample_id=f"s{sample}",
                    method="benchmark",
                    context=context,
                    chosen=texts[n],
                    rejected=texts[n + 1],
                )
            )
    return rows


@dataclass
class Timing:
    """Seconds by the clock and of the processor of every run, and what the last one gave."""

    clock: list[float]
    processor: list[float]
    loss: float = 0.0
    tokens: int = 0
    prompt: int = 0


def run(model: Any, collate: Collator, rows: Sequence[PairRow], reference: torch.Tensor, timing: Timing) -> None:
    """One step's forward and backward, media opened and rendered included."""
    model.zero_grad()
    device = next(model.parameters()).device
    begun, used = time.perf_counter(), time.process_time()
    batch = collate(rows).to(device)
    output = DPO()(loss_inputs(batch, completion_logps(model, batch), reference))
    loss = output.loss.mean()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    timing.clock.append(time.perf_counter() - begun)
    timing.processor.append(time.process_time() - used)
    timing.loss, timing.tokens = float(loss.detach()), batch.inputs["input_ids"].numel()
    timing.prompt = int(batch.lengths[0, 0]) - int(batch.mask[0].sum())


def compare(name: str, arguments: argparse.Namespace, root: Path) -> None:
    torch.manual_seed(0)
    loaded = MODELS[name](arguments.side)
    settings = TrainConfig(lora=LoraConfig(), gradient_checkpointing=arguments.checkpointing)
    model = trainable(loaded.model.to(arguments.device), settings)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "lora_B" in part:
                weight.normal_(0, 0.02)
    rows = pairs(root, arguments.samples, arguments.side, arguments.completions, arguments.answer)
    plain = Collator(loaded.renderer, root, MediaLimits())
    roads = {"plain": plain, "shared": replace(plain, shares=True)}
    timings = {road: Timing([], []) for road in roads}
    with torch.no_grad(), model.disable_adapter():
        reference = completion_logps(model.eval(), plain(rows).to(next(model.parameters()).device))
    training_mode(model)
    for number in range(arguments.runs + 1):
        for road, collate in roads.items():
            run(model, collate, rows, reference, timings[road])
        if number == 0:  # the first of each warms up
            for timing in timings.values():
                timing.clock.clear(), timing.processor.clear()
    one, other = timings["plain"], timings["shared"]
    assert abs(one.loss - other.loss) <= 1e-5 * max(1, abs(one.loss)), (one.loss, other.loss)
    ratios = [
        statistics.median(a) / statistics.median(b)
        for a, b in ((one.clock, other.clock), (one.processor, other.processor))
    ]
    bound = one.tokens / other.tokens
    print(
        f"{name}: prompt {one.prompt}, answer ~{arguments.answer}, K {arguments.completions}: "
        f"{ratios[0]:.2f} times as fast by the clock, {ratios[1]:.2f} by processor seconds "
        f"({statistics.median(one.clock):.2f} s -> {statistics.median(other.clock):.2f} s, "
        f"{min(other.clock):.2f}-{max(other.clock):.2f}); bound by tokens {bound:.2f}; loss {one.loss:.6f} both"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--side", type=int, default=24, help="a picture has side x side tokens")
    parser.add_argument("--answer", type=int, default=80, help="about how many tokens an answer has")
    parser.add_argument("--completions", type=int, default=2, help="answers per prompt, an even number")
    parser.add_argument("--samples", type=int, default=2, help="prompts per step")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS if arguments.model == "all" else [arguments.model]:
            compare(name, arguments, Path(folder))
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
