from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmalign.text import prompts
from mmalign.tiny import COLOURS, KINDS, draw_scene, scenes
from mmalign.tiny.build import build_config, build_model, build_processor, save
from mmalign.tiny.vocabulary import SPECIAL, build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL)))
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize("word", ["Yes", "No", " yes", " no", *(f" {word}" for word in (*KINDS, *COLOURS))])
def test_words_of_the_toy_language_are_one_token(word):
    assert len(TOKENIZER.encode(word).ids) == 1


def test_the_prompts_are_written_in_whole_words():
    for text in (*prompts.DETAIL, *prompts.PLAIN, prompts.STEP_BY_STEP, *prompts.IMAGINE, *prompts.BRIEF):
        assert len(TOKENIZER.encode(text).ids) <= len(text.split()) + sum(not c.isalnum() for c in text) + 1


def test_content_may_be_text_or_parts(processor):
    def write(content):
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    assert write("Hello?") == write([{"type": "text", "text": "Hello?"}]) == "<|user|>Hello?<|end|><|assistant|>"
    picture = {"type": "image"}
    assert write([picture, picture, {"type": "text", "text": "Same?"}]) == (
        "<|user|>" + "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "Same?<|end|><|assistant|>"
    )
    assert write([{"type": "video"}]) == "<|user|><|video_pad|><|end|><|assistant|>"


def test_a_conversation_with_a_system_turn_can_be_continued(processor):
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "There is"}]},
    ]
    whole = processor.apply_chat_template(chat)
    begun = processor.apply_chat_template(chat, continue_final_message=True)
    assert begun.endswith("<|assistant|>There is")
    assert whole == begun + "<|end|>"
    assert begun.startswith("<|system|>Be kind.<|end|><|user|>")


@pytest.mark.parametrize(
    ("turn", "wrong"),
    [({"role": "tool", "content": "x"}, "tool"), ({"role": "user", "content": [{"type": "sound"}]}, "sound")],
)
def test_unknown_roles_and_parts_are_named(processor, turn, wrong):
    with pytest.raises(Exception, match=f"unknown .* {wrong}"):
        processor.apply_chat_template([turn])


def test_a_saved_model_is_loaded_by_the_auto_classes(tmp_path: Path, processor):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    model = build_model(build_config(processor.tokenizer))
    save(model, processor, tmp_path)
    loaded, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 12_000_000
    assert loaded.dtype == torch.bfloat16
    pictures = [draw_scene(scene) for scene in scenes(2, 0, "dev")]
    text = reader.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * 2}], add_generation_prompt=True
    )
    given_ = reader(text=[text], images=pictures, return_tensors="pt")
    assert (given_["input_ids"] == loaded.config.image_token_id).sum() == 32
    out = loaded.generate(**given_, max_new_tokens=3)
    assert out.shape[1] <= given_["input_ids"].shape[1] + 3
    assert reader.tokenizer.eos_token == "<|end|>"
    assert loaded.generation_config.eos_token_id == reader.tokenizer.eos_token_id
