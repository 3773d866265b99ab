"""Random models of stock classes, narrow but with the shares of real ones, and pairs for them.

What counts for a ratio of two trainings is how tower, language model and head compare. So the narrow models keep, per
token of the language model, the tower's and the head's share of the work that linear layers of these have:

- `qwen2.5-vl`: Qwen2.5-VL-3B. Its tower costs .9 of a forward of the language model for every token of a picture, its
  head .11 for every token it is applied to. All of the tower's attention is windowed: at this width that of whole
  pictures would weigh ten times what it does in the real one.
- `llava`: LLaVA-1.5-7B, whose tower costs .05 and whose head .02.

`3b` is Qwen2.5-VL-3B itself with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    Qwen2VLVideoProcessor,
)

from mmalign.lm.load import Loaded
from mmalign.media.files import file_sha256
from mmalign.media.frames import FrameChoice
from mmalign.media.read import MediaLimits, open_ref
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow
from mmalign.types import Chat, Media, MediaRef, Message, Picture
from tests.media.clips import Film
from tests.models import LLAVA_TEMPLATE, _qwen_vl, picture, tokenizer

#: Layers of the narrow language models.
LAYERS = 2
#: Weights of a narrow head, and of a layer of a narrow language model, in squares of its width.
HEADS, LAYER = {"qwen2.5-vl": 0.112, "llava": 0.02}, {"qwen2.5-vl": 18.4, "llava": 12.1}
WORDS = ("red boat", "blue fish", "small tree", "big crab", "left", "right", "top")


def vocabulary(name: str, width: int) -> int:
    """So many tokens that the narrow head has its share; the tokenizer's own at least."""
    return max(len(tokenizer(None)), round(HEADS[name] * LAYER[name] * LAYERS * width))


def edge(name: str) -> int:
    """Pixels along one side of what one token of a picture shows."""
    return {"qwen2.5-vl": 16, "llava": 16, "3b": 28}[name]


def _qwen(side: int, width: int, words: int) -> Loaded:
    narrow = _qwen_vl("2.5", width=width, layers=LAYERS)
    config = narrow.model.config
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.intermediate_size, text.max_position_embeddings = words, round(5.375 * width), 8192
    text.num_key_value_heads = 1
    text.rope_parameters["mrope_section"] = [width // 32, 3 * width // 64, 3 * width // 64]
    vision.hidden_size = round(0.54 * width / 16) * 16
    vision.intermediate_size = round(2.3 * vision.hidden_size)
    vision.window_size, vision.fullatt_block_indexes = 64, []
    limits = {"shortest_edge": 16**2, "longest_edge": (side * 16) ** 2}
    narrow.processor.image_processor.size = narrow.processor.video_processor.size = limits
    return Loaded(Qwen2_5_VLForConditionalGeneration(config), narrow.processor, "qwen2.5-vl-random")


def _llava(side: int, width: int, words: int) -> Loaded:
    tok = tokenizer(None)
    size = side * 16
    tower = CLIPVisionConfig(
        hidden_size=width // 8 // 4 * 4,
        intermediate_size=width // 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=size,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=round(2.69 * width),
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
    )
    image = tok.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=image, vision_feature_layer=-1)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer=tok,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return Loaded(LlavaForConditionalGeneration(config), processor, "llava-random")


def _three_b(side: int) -> Loaded:
    """Qwen2.5-VL-3B's sizes, with the tokenizer of the narrow models."""
    narrow = _qwen_vl("2.5")
    config, processor = narrow.model.config, narrow.processor
    text = {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * 36,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "out_hidden_size": 2048,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    for part, sizes in ((config.text_config, text), (config.vision_config, vision)):
        for key, value in sizes.items():
            setattr(part, key, value)
    config.tie_word_embeddings = True
    config.text_config.rope_parameters |= {"rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    limits = {"shortest_edge": 28**2, "longest_edge": (side * 28) ** 2}
    processor.image_processor.patch_size, processor.image_processor.size = 14, limits
    processor.video_processor = Qwen2VLVideoProcessor(patch_size=14, size=limits, cap_pixels_per_frame=False)
    return Loaded(Qwen2_5_VLForConditionalGeneration(config), processor, "qwen2.5-vl-3b-random")


_MAKERS: dict[str, Callable[[int, int, int], Loaded]] = {"qwen2.5-vl": _qwen, "llava": _llava}
MODELS = tuple(_MAKERS)


def load(name: str, side: int, width: int, words: int | None = None, dtype: Any = None, device: str = "cpu") -> Loaded:
    """The same random model at every call, which gives `side` x `side` tokens to a picture."""
    torch.manual_seed(0)
    if name == "3b":
        with torch.device(device):
            loaded = _three_b(side)
    else:
        loaded = _MAKERS[name](side, width, words or vocabulary(name, width))
    loaded.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return loaded


def pairs(name: str, root: Path, samples: int, side: int, answer: int, completions: int = 2) -> list[PairRow]:
    """`completions` / 2 pairs about each of `samples` pictures, with answers of `answer` tokens, more or less."""
    size = side * edge(name)
    shown = []
    for sample in range(samples):
        path = root / f"{sample}.png"
        picture(sample, size=(size, size)).image.save(path)
        shown.append(Picture(picture().image, MediaRef(path.name, sha256=file_sha256(path))))
    return [row for sample, media in enumerate(shown) for row in _about(sample, media, answer, completions)]


def listed(rows: Sequence[PairRow]) -> list[PairRow]:
    """All answers of pairs about one context as one list, the first the best."""
    texts = [text for row in rows for text in (row.chosen, row.rejected)]
    scores = [1 - place / len(texts) for place in range(len(texts))]
    return [replace(rows[0], sides={"answers": [AnswerRow(text=text) for text in texts]}, values={"scores": scores})]


def clips(name: str, root: Path, samples: int, side: int, answer: int, frames: int) -> list[PairRow]:
    """A pair about each of `samples` clips of `frames` frames, of which two give `side` x `side` tokens."""
    size = side * edge(name)
    limits = MediaLimits(frames=FrameChoice(num_frames=frames))
    rows = []
    for sample in range(samples):
        path = Film(f"{sample}.mkv", "ffv1", num=frames, size=(size, size), rate=2).write(root)
        media = open_ref(MediaRef(path.name, "video", sha256=file_sha256(path)), root, limits)
        rows += _about(sample, media, answer, 2)
    return rows


def _about(sample: int, media: Media, answer: int, completions: int) -> list[PairRow]:
    context = Chat((Message("user", (media, "Describe it in detail.")),)).to_rows()
    texts = [_text(sample, n, answer) for n in range(completions)]
    return [
        PairRow(
            id=f"s{sample}#{n}",
            sample_id=f"s{sample}",
            method="benchmark",
            context=context,
            chosen=texts[n],
            rejected=texts[n + 1],
        )
        for n in range(0, completions, 2)
    ]


def _text(sample: int, n: int, answer: int) -> str:
    """Answer number `n` about a sample; no two begin alike."""
    length = round(answer * (1 + (-1) ** (sample + n) * 0.2) / 2.15)
    return " ".join(WORDS[(sample + n + i * (n + 1)) % 7] for i in range(length))
