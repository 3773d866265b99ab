"""Tiny random models of stock transformers classes with processors built by hand: no hub, no files.

`tiny(name)` gives a fresh `Loaded`; random weights are scaled up so that greedy answers vary instead of repeating.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmalign.lm.load import Loaded, load_model
from mmalign.lm.spec import ModelSpec
from mmalign.types import Clip, Frames, MediaRef, Picture

WORDS = (
    "Describe the picture in detail. Is there a red boat in the picture? Answer yes or no. Yes. No. There is a big "
    "blue fish at the top and a small tree on the left. What colour is the crab? Say: one two three four five six. "
)
SPECIALS = [
    "<|pad|>",
    "<|end|>",
    "<|begin|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
]
#: Of the families that were built for video.
VIDEO_SPECIALS = ["<video>", "<IMG_CONTEXT>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]

#: Content as a list of parts; the turn ends with a token and a line break, as in Qwen.
PARTS_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: Content as a string only.
STRING_TEMPLATE = (
    "<|begin|>{% for m in messages %}<|{{ m.role }}|>{{ m.content + '' }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: Shape of LLaVA 1.5: no control tokens, a blank before the answer, no end of turn.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
    "{% for p in m.content if p.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: Shape of LLaVA-NeXT-Video and LLaVA-OneVision: a word per kind of media, turns that end.
MARKS_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>\n{% elif p.type == 'video' %}<video>\n{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: Shape of SmolVLM2: a role with a colon, a blank only where text comes first, its own end of turn.
SMOL_TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}<image>"
    "{% elif p.type == 'video' %}<video>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer(
    template: str | None = STRING_TEMPLATE,
    bos: bool = False,
    more: Sequence[str] = (),
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIALS, *more], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([WORDS] * 20, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        bos_token="<|begin|>" if bos else None,
        additional_special_tokens=[*SPECIALS[2:], *more],
        model_specific_special_tokens=named or {},
    )
    made.chat_template = template
    return made


def _text_model(kind: str) -> Loaded:
    tok = tokenizer(STRING_TEMPLATE, bos=True)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "mixtral": (MixtralConfig, MixtralForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
    }[kind]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}
    more = {"original_max_position_embeddings": 64, "rope_parameters": rope} if kind == "phi3" else {}
    config = config_class(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=tok.bos_token_id,
        **more,
    )
    return Loaded(model_class(config), tok, f"{kind}-random")


def _llava() -> Loaded:
    tok = tokenizer(None)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return Loaded(LlavaForConditionalGeneration(config), processor, "llava-random")


def _qwen_vl(generation: str, width: int = 32, layers: int = 2) -> Loaded:
    tok = tokenizer(None)
    ids = {name: tok.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    text = {
        "vocab_size": len(tok),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": tok.pad_token_id,
        "eos_token_id": tok.eos_token_id,
        "bos_token_id": None,
    }
    special = {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": tok.convert_tokens_to_ids("<|vision_end|>"),
    }
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}}
    images = Qwen2VLImageProcessor(**sizes, **limits)
    if generation == "2":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        vision = {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": width,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        config = Qwen2VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **special)
        videos = Qwen2VLVideoProcessor(**sizes, **limits, cap_pixels_per_frame=False)
        processor = Qwen2VLProcessor(images, tok, videos, chat_template=PARTS_TEMPLATE)
        return Loaded(Qwen2VLForConditionalGeneration(config), processor, "qwen2-vl-random")
    if generation == "2.5":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **special)
        videos = Qwen2VLVideoProcessor(**sizes, **limits, cap_pixels_per_frame=False)
        processor = Qwen2_5_VLProcessor(images, tok, videos, chat_template=PARTS_TEMPLATE)
        return Loaded(Qwen2_5_VLForConditionalGeneration(config), processor, "qwen2.5-vl-random")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config={**text, "head_dim": 8, "rope_parameters": rope}, vision_config=vision, **special
    )
    limits = {"size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 16 * 48 * 48}}  # of all frames together
    videos = Qwen3VLVideoProcessor(**sizes, **limits, cap_pixels_per_frame=False)
    processor = Qwen3VLProcessor(images, tok, videos, chat_template=PARTS_TEMPLATE)
    return Loaded(Qwen3VLForConditionalGeneration(config), processor, "qwen3-vl-random")


def _text(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """A language model of two layers, 32 wide."""
    return {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tok.pad_token_id,
        "eos_token_id": tok.eos_token_id,
        "bos_token_id": None,
        **more,
    }


#: A vision tower for pictures of 32 x 32.
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_SQUARE = {"height": 32, "width": 32}


def _marks(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{kind}_token_index": tok.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}


def _llava_onevision() -> Loaded:
    tok = tokenizer(None, more=VIDEO_SPECIALS)
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=LlamaConfig(**_text(tok)),
        image_grid_pinpoints=pinpoints,
        **_marks(tok),
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=_SQUARE, image_grid_pinpoints=pinpoints),
        tok,
        LlavaOnevisionVideoProcessor(size=_SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=MARKS_TEMPLATE,
    )
    return Loaded(LlavaOnevisionForConditionalGeneration(config), processor, "llava-onevision-random")


def _llava_next_video() -> Loaded:
    tok = tokenizer(None, more=VIDEO_SPECIALS)
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=LlamaConfig(**_text(tok)),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        **_marks(tok),
    )
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(size={"shortest_edge": 32}, crop_size=_SQUARE),
        LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=_SQUARE, image_grid_pinpoints=pinpoints),
        tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MARKS_TEMPLATE,
    )
    return Loaded(LlavaNextVideoForConditionalGeneration(config), processor, "llava-next-video-random")


def _smolvlm() -> Loaded:
    tok = tokenizer(None, more=VIDEO_SPECIALS)
    config = SmolVLMConfig(
        vision_config=_TOWER,
        text_config=LlamaConfig(**_text(tok)).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes, do_image_splitting=False),
        tok,
        SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=SMOL_TEMPLATE,
    )
    return Loaded(SmolVLMForConditionalGeneration(config), processor, "smolvlm-random")


def _internvl() -> Loaded:
    named = {
        "start_image_token": "<|vision_start|>",
        "end_image_token": "<|vision_end|>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(None, more=VIDEO_SPECIALS, named=named)
    config = InternVLConfig(
        vision_config={**_TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=LlamaConfig(**_text(tok)).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=True, max_patches=4),
        tok,
        InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=4,
        chat_template=MARKS_TEMPLATE.replace("<image>", "<IMG_CONTEXT>"),
    )
    return Loaded(InternVLForConditionalGeneration(config), processor, "internvl-random")


def _idefics3() -> Loaded:
    tok = tokenizer(None, more=VIDEO_SPECIALS)
    config = Idefics3Config(
        vision_config=_TOWER,
        text_config=LlamaConfig(**_text(tok)).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    images = Idefics3ImageProcessor(**sizes, do_image_splitting=False)
    processor = Idefics3Processor(images, tok, image_seq_len=4, chat_template=SMOL_TEMPLATE)
    return Loaded(Idefics3ForConditionalGeneration(config), processor, "idefics3-random")


def _gemma3() -> Loaded:
    """Pictures whose tokens see each other both ways, and every second layer with a window."""
    marks = {"boi_token": "<|vision_start|>", "eoi_token": "<|vision_end|>", "image_token": "<|image_pad|>"}
    tok = tokenizer(None, named=marks)
    ids = {name: tok.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    text = Gemma3TextConfig(
        **_text(tok), head_dim=8, sliding_window=12, layer_types=["sliding_attention", "full_attention"]
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=_SQUARE),
        tok,
        image_seq_length=4,
        chat_template=PARTS_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>"),
    )
    return Loaded(Gemma3ForConditionalGeneration(config), processor, "gemma3-random")


_MAKERS: dict[str, Callable[[], Loaded]] = {
    "llama": lambda: _text_model("llama"),
    "qwen3": lambda: _text_model("qwen3"),
    "mixtral": lambda: _text_model("mixtral"),
    "phi3": lambda: _text_model("phi3"),
    "llava": _llava,
    "qwen2-vl": lambda: _qwen_vl("2"),
    "qwen2.5-vl": lambda: _qwen_vl("2.5"),
    "qwen3-vl": lambda: _qwen_vl("3"),
    "llava-onevision": _llava_onevision,
    "llava-next-video": _llava_next_video,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "tiny": lambda: load_model(ModelSpec(device="cpu")),
}
SEEING = ("llava", "qwen2.5-vl", "qwen3-vl")
#: Models with a way of their own to take clips.
WATCHING = ("qwen2.5-vl", "qwen3-vl", "llava-onevision", "llava-next-video", "smolvlm", "internvl")
READING = ("llama", "qwen3")
ALL = (*READING, *SEEING)


def tiny(name: str, seed: int = 0) -> Loaded:
    """A fresh random model, float32 on the CPU, in eval mode; its weights are as those of a loaded one."""
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(seed)
        loaded = _MAKERS[name]()
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.35 if parameter.shape[-1] <= 64 else 0.15)
        loaded.model.float().eval().requires_grad_(False)
    return loaded


def tiny_llama() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A fresh text-only model and its tokenizer, to be saved into a folder."""
    loaded = tiny("llama")
    return loaded.model, loaded.processor


def large(seed: int = 0) -> Loaded:
    """A random Qwen3-VL with about the work per token of the embedded model, for timing."""
    torch.manual_seed(seed)
    loaded = _qwen_vl("3", width=192, layers=6)
    loaded.model.float().eval().requires_grad_(False)
    return loaded


@cache
def shared(name: str) -> Loaded:
    """One model per test process, for tests that do not change it."""
    return tiny(name)


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Picture:
    """A picture with a few coloured blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
    return Picture(Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST), MediaRef(f"{seed}.png"))


def clip(
    seed: int = 0,
    frames: int = 4,
    size: tuple[int, int] = (32, 32),
    fps: float = 2.0,
    times: tuple[float, ...] | None = None,
) -> Clip:
    """A clip of pictures with a few coloured blocks: the first `frames` of a file, or those at `times`."""
    shown = times or tuple(number / fps for number in range(frames))
    numbers = tuple(round(time * fps) for time in shown)
    ref = MediaRef(f"{seed}.mp4", "video", frames=Frames(numbers, shown, fps, numbers[-1] + 1))
    return Clip(tuple(picture(100 * seed + number, size).image for number in range(len(shown))), shown, ref)
