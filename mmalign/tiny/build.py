"""Puts together the untrained model: configuration, tokenizer and processor, all of stock transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mmalign.tiny.draw import SIDE
from mmalign.tiny.vocabulary import END, IMAGE_PAD, PAD, VIDEO_PAD, VISION_END, VISION_START, build_tokenizer

PATCH: Final = 8
MERGE: Final = 2
TEMPORAL: Final = 2

#: A turn is `<|role|>text<|end|>`. Content is a string or a list of image, video and text parts, in order.
CHAT_TEMPLATE: Final = """
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role ' ~ message['role'] ~ '; it must be system, user or assistant') -}}
    {%- endif -%}
    {{- '<|' ~ message['role'] ~ '|>' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part is string -%}
                {{- part -}}
            {%- elif part['type'] in ['image', 'image_url'] -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] in ['video', 'video_url'] -%}
                {{- '<|video_pad|>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- else -%}
                {{- raise_exception('unknown part ' ~ part['type'] ~ '; it must be image, video or text') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

#: By which `transformers serve` tells an answer from its prompt; it would take the turns for those of Qwen3-VL.
RESPONSE_TEMPLATE: Final = {"start_anchor": "<|assistant|>", "fields": {"content": {"close": END}}}


def build_processor() -> Any:
    """The Qwen3VLProcessor: every picture and frame is brought to 64x64, which makes 16 tokens."""
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        response_template=RESPONSE_TEMPLATE,
    )
    pixels = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image = Qwen2VLImageProcessor(size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}, **pixels)
    video = Qwen3VLVideoProcessor(
        size={"shortest_edge": 2 * SIDE * SIDE, "longest_edge": 64 * SIDE * SIDE},
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        max_video_tokens=(SIDE // (PATCH * MERGE)) ** 2,
        **pixels,
    )
    return Qwen3VLProcessor(image, tokenizer, video, chat_template=CHAT_TEMPLATE)


def build_config(tokenizer: Any) -> Any:
    """The Qwen3VLConfig of the embedded model: 4 vision layers of 128, 5 language layers of 192."""
    from transformers import Qwen3VLConfig

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 512,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": token(PAD),
            "eos_token_id": token(END),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 4,
            "intermediate_size": 384,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": 192,
            "num_position_embeddings": (SIDE // PATCH) ** 2,
            "deepstack_visual_indexes": [],
        },
        image_token_id=token(IMAGE_PAD),
        video_token_id=token(VIDEO_PAD),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=True,
        pad_token_id=token(PAD),
        eos_token_id=token(END),
    )


def build_model(config: Any) -> Any:
    """A freshly initialised Qwen3VLForConditionalGeneration in fp32, with greedy generation settings."""
    from transformers import GenerationConfig, Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        max_new_tokens=160,
    )
    return model


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write weights (bf16 safetensors), configuration, tokenizer and processor so that the Auto classes load them."""
    import torch

    half = build_model(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
