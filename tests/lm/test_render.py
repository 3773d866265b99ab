"""Rendering on the templates of real model families, and its agreement with what models generate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import ModelError, SampleError
from mmalign.lm.render import Renderer
from mmalign.types import Chat, Message
from tests.models import ALL, LLAVA_TEMPLATE, PARTS_TEMPLATE, SEEING, STRING_TEMPLATE, picture, shared, tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: Qwen3's way: an empty thought is written before the answer, and into the prompt if thinking is off.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: Gemma's and Mistral's way with strict roles and trimmed text.
STRICT = (
    "<|begin|>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat(*prompts: str) -> Chat:
    return Chat(tuple(Message("user", (prompt,)) for prompt in prompts))


def renderer(template: str) -> Renderer:
    return Renderer(tokenizer(template))


def test_string_and_parts_templates_give_the_same_text() -> None:
    asked = Chat((Message("system", ("Be brief.",)), Message("user", ("Hello, ", "you."))))
    text = renderer(STRING_TEMPLATE).prompt(asked)
    assert text == "<|begin|><|system|>Be brief.<|end|>\n<|user|>Hello, you.<|end|>\n<|assistant|>"
    parts = renderer(PARTS_TEMPLATE.replace("{% if m.content is string %}{{ m.content }}{% else %}", "{% if 1 %}"))
    assert "<|begin|>" + parts.prompt(asked) == text


def test_pictures_stand_where_they_were_put() -> None:
    seeing = shared("qwen3-vl").renderer
    mixed = Chat((Message("user", ("Left: ", picture(0), " right: ", picture(1), ".")),))
    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    assert seeing.prompt(mixed) == f"<|user|>Left: {marker} right: {marker}.<|end|>\n<|assistant|>"


@pytest.mark.parametrize(
    ("template", "answer", "lead", "end"),
    [
        (CHATML, "A fish.<|end|>", "", "<|end|>"),
        (THINKING, "A fish.<|end|>", "", "<|end|>"),
        (STRICT, "A fish.<|end|>", "", "<|end|>"),
        (LLAVA_TEMPLATE, " A fish.<|end|>", " ", "<|end|>"),
        (CHATML.replace("<|end|>\n", "<|end|>\n<|pad|>"), "A fish.<|end|>", "", "<|end|>"),
        (CHATML.replace("}}<|end|>", "}} <|end|>"), "A fish. <|end|>", "", "<|end|>"),
        (CHATML.replace("<|end|>\n", "\n"), "A fish.<|end|>", "", "<|end|>"),
    ],
    ids=["chatml", "thinking", "strict", "llava", "two ends", "blank before the end", "no end"],
)
def test_answers_end_with_the_turn_and_nothing_behind_it(template: str, answer: str, lead: str, end: str) -> None:
    made = renderer(template)
    assert made.answer(chat("What?"), "A fish.") == answer
    assert (made.lead, made.end_of_turn) == (lead, end)


@pytest.mark.parametrize("template", [CHATML, THINKING, STRICT, LLAVA_TEMPLATE])
def test_a_begun_answer_and_its_rest_are_the_whole_answer(template: str) -> None:
    made, asked = renderer(template), chat("What?")
    whole = made.prompt(asked) + made.answer(asked, "A big fish.")
    begun = asked.answering("A big")
    assert made.prompt(begun) + made.answer(begun, " fish.") == whole
    assert not made.prompt(begun).endswith("<|end|>")
    assert made.prompt(asked.answering("")) == made.prompt(asked)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=30))
def test_prompt_and_answer_are_the_templates_text(text: str) -> None:
    made, asked = _CHATML, chat("What?")
    whole = made.processor.apply_chat_template(
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": text}], tokenize=False
    )
    assert made.prompt(asked) + made.answer(asked, text) + "\n" == whole


_CHATML = renderer(CHATML)


def test_no_template_is_a_one_line_error() -> None:
    with pytest.raises(ModelError, match=r"no chat template: use an instruct model or add chat_template\.jinja"):
        Renderer(tokenizer(None))


def test_a_template_that_shows_no_content_is_refused() -> None:
    with pytest.raises(ModelError, match="neither as text nor as a list"):
        renderer("{% for m in messages %}{{ m.role }}{% endfor %}")


def test_what_a_template_refuses_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match="refuses this chat: System role not supported"):
        renderer(STRICT).prompt(Chat((Message("system", ("x",)), Message("user", ("y",)))))


@pytest.mark.parametrize("name", ALL)
def test_control_tokens_in_text_are_refused(name: str) -> None:
    made = shared(name).renderer
    with pytest.raises(SampleError, match="the user text contains the model's control token '<image>'"):
        made.prompt(chat("see <image> here"))
    with pytest.raises(SampleError, match="the assistant text contains"):
        made.answer(chat("x"), "ends<|end|>")


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (200, 17), (1, 1)])
def test_length_with_pictures_is_measured(name: str, size: tuple[int, int]) -> None:
    made = shared(name).renderer
    asked = Chat((Message("user", (picture(0, size), "and", picture(1), "What?")),))
    text = made.prompt(asked)
    try:
        encoded = made.encode([text], [asked.media])
    except ValueError:
        pytest.skip("this processor takes no picture of that shape")
    assert made.num_tokens(text, asked.media) == encoded["input_ids"].shape[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_where_it_is_asked(side: str) -> None:
    made = shared("llama").renderer
    texts = [made.prompt(chat("Yes")), made.prompt(chat("A much longer one."))]
    mask = made.encode(texts, [[], []], side)["attention_mask"]  # type: ignore[arg-type]
    assert mask[1].all()
    assert bool(mask[0, 0]) == (side == "right")


def test_rows_with_and_without_pictures_share_a_batch() -> None:
    for name in SEEING:
        made = shared(name).renderer
        seen, unseen = Chat((Message("user", (picture(), "What?")),)), chat("What?")
        encoded = made.encode([made.prompt(seen), made.prompt(unseen)], [seen.media, ()])
        alone = made.encode([made.prompt(unseen)], [[]])["input_ids"][0]
        assert encoded["input_ids"][1][encoded["attention_mask"][1].bool()].tolist() == alone.tolist()


def test_letters_that_fuse_across_the_border_count_as_the_answers() -> None:
    made = renderer(CHATML)
    assert len(made.token_ids("say the")) == len(made.token_ids("say")) + 1
    assert made.answer_length("say", " the") == 1
    assert made.answer_length("say ", "the") == 1
    assert made.answer_length("say th", "e<|end|>") == 2


def test_bos_is_never_doubled() -> None:
    made = Renderer(tokenizer(STRING_TEMPLATE, bos=True))
    assert made.token_ids(made.prompt(chat("x"))).count(made.tokenizer.bos_token_id) == 1
