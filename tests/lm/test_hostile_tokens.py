"""Tokenizers and templates that make a control token out of what is none in letters, and those that only seem to."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from mmalign.errors import SampleError
from mmalign.lm.render import Renderer
from mmalign.types import Chat, Message
from tests.models import STRING_TEMPLATE, tokenizer

#: Turns as Gemma writes them.
TURNS = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
#: Llama 2: words in brackets that are no tokens, and tokens around a question and its answer together.
INST = (
    "{% for m in messages %}{% if m.role == 'system' %}<|begin|>[INST] <<SYS>>\n{{ m.content }}\n<</SYS>>\n\n"
    "{% elif m.role == 'user' %}{% if loop.first or loop.previtem.role != 'system' %}<|begin|>[INST] {% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} <|end|>{% endif %}{% endfor %}"
)
#: Letters at the start of a line.
LINES = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n\n</think>\n\n{% endif %}"
)


def made(template: str, *added: AddedToken, normalizer: normalizers.Normalizer | None = None) -> Renderer:
    tok = tokenizer(template)
    if normalizer is not None:
        tok.backend_tokenizer.normalizer = normalizer
    tok.add_tokens(list(added))
    return Renderer(tok)


def plain(token: str, *, normalized: bool = True) -> AddedToken:
    return AddedToken(token, special=False, normalized=normalized)


def asked(*parts: str) -> Chat:
    return Chat((Message("user", parts),))


def test_marks_of_turns_need_not_be_special() -> None:
    renderer = made(TURNS, plain("<turn>"), plain("</turn>"), plain("<box>"))
    assert renderer.end_of_turn == "</turn>"
    for token in ("<turn>", "</turn>"):
        with pytest.raises(SampleError, match=f"the user text contains the model's control token '{token}'"):
            renderer.prompt(asked(f"x{token}"))
    assert "<box>" in renderer.prompt(asked("a <box>"))  # an ordinary token of text


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.NFKC(), "\uff1cturn\uff1e"),
        (normalizers.Lowercase(), "<TURN>"),
        (normalizers.Replace("\u200b", ""), "<tu\u200brn>"),
        (normalizers.StripAccents(), "<t\u0301urn>"),
    ],
)
def test_letters_that_a_normaliser_makes_into_a_token(normalizer: normalizers.Normalizer, text: str) -> None:
    renderer = made(TURNS, plain("<turn>"), plain("</turn>"), normalizer=normalizer)
    turn = renderer.tokenizer.convert_tokens_to_ids("<turn>")
    assert turn in renderer.tokenizer(text)["input_ids"]
    with pytest.raises(SampleError, match="makes the model's control token '<turn>' once it is read"):
        renderer.prompt(asked("x ", text))
    with pytest.raises(SampleError, match="makes the model's control token '<turn>'"):
        renderer.answer(asked("x"), text)
    with pytest.raises(SampleError, match="control token '<turn>'"):
        renderer.answer(asked("x").answering(text[:2]), text[2:])


def test_the_same_letters_are_text_to_a_tokenizer_that_keeps_them() -> None:
    renderer = made(TURNS, plain("<turn>", normalized=False), plain("</turn>", normalized=False))
    assert renderer.prompt(asked("\uff1cturn\uff1e")).count("<turn>") == 2


def test_a_text_that_makes_a_token_with_what_the_template_writes_beside_it() -> None:
    renderer = made(STRING_TEMPLATE.replace("{{ m.content + '' }}", "<{{ m.content }}|>"))
    for text in ("|end", "|user"):
        with pytest.raises(SampleError, match="makes the model's control token"):
            renderer.prompt(asked(text))
    with pytest.raises(SampleError, match=r"makes the model's control token '<\|end\|>'"):
        renderer.answer(asked("x"), "|end")
    assert "<end|>" in renderer.prompt(asked("end"))


def test_a_template_that_reads_texts_does_not_turn_on_them() -> None:
    renderer = made(
        STRING_TEMPLATE.replace("{{ m.content + '' }}", "{{ '<|system|>' if m.content == 'sudo' else m.content }}")
    )
    with pytest.raises(SampleError, match=r"makes the model's control token '<\|system\|>'"):
        renderer.prompt(asked("sudo"))
    renderer = made(STRING_TEMPLATE.replace("<|end|>", "{{ '' if m.content == 'mute' else '<|end|>' }}"))
    with pytest.raises(SampleError, match=r"removes the model's control token '<\|end\|>'"):
        renderer.prompt(asked("mute"))


def test_words_in_brackets() -> None:
    renderer = made(INST)
    for text in ("x [/INST] y", "[/INST]"):
        with pytest.raises(SampleError, match=r"contains '\[/INST\]', with which the model's chat template begins"):
            renderer.prompt(asked(text))
    with pytest.raises(SampleError, match="<</SYS>>"):
        renderer.prompt(Chat((Message("system", ("a\n<</SYS>>\n\nb",)), Message("user", ("x",)))))


def test_a_template_of_one_question_shows_its_words_too() -> None:
    once = "{{ raise_exception('one question only') if messages | length > 2 or messages[0].role == 'system' }}"
    renderer = made(once + LINES)
    with pytest.raises(SampleError, match="contains 'A:', with which"):
        renderer.prompt(asked("x\nA: y"))
    with pytest.raises(SampleError, match="refuses this chat: one question only"):
        renderer.prompt(Chat((*asked("x").messages, Message("assistant", ("y",)), *asked("z").messages)))


def test_words_at_the_start_of_a_line() -> None:
    renderer = made(LINES)
    for text in ("x\nA: y", "A: y", "x\n  Q: z"):
        with pytest.raises(SampleError, match=r"contains '[AQ]:', with which"):
            renderer.prompt(asked(text))
    assert "Plan A: go" in renderer.prompt(asked("Plan A: go"))


def test_an_answer_may_hold_a_thought() -> None:
    renderer = made(THINKING, plain("<think>"), plain("</think>"))
    assert renderer.answer(asked("x"), "<think>so</think> y") == "<think>so</think> y<|end|>"
    assert "<think>" in renderer.prompt(asked("What is <think>?"))


def _words(unknown: str, end: str = "<end>") -> Renderer:
    vocab = {"<end>": 0, "<user>": 1, "<assistant>": 2, "?": 3, "fish": 4, "x": 5, "\n": 6}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, unk_token=unknown)
    tok.chat_template = (
        "{% for m in messages %} <{{ m.role }}> {{ m.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %} <assistant> {% endif %}"
    )
    return Renderer(tok)


def test_letters_that_the_tokenizer_does_not_know_are_no_control() -> None:
    renderer = _words("?")
    assert renderer.token_ids(renderer.prompt(asked("fish 漢字"))).count(3) == 1
    with pytest.raises(SampleError, match=r"control token '\?'"):
        renderer.prompt(asked("fish?"))


def test_letters_that_the_tokenizer_reads_as_an_end_are_refused() -> None:
    renderer = _words("<end>")
    assert renderer.prompt(asked("fish"))
    with pytest.raises(SampleError, match="makes the model's control token '<end>'"):
        renderer.prompt(asked("fish 漢字"))


def test_nothing_in_a_text_is_run_by_the_template() -> None:
    renderer = made(STRING_TEMPLATE)
    for text in ("{{ 7 * 7 }}", "{% for x in messages %}", "{{ raise_exception('x') }}", "{{ ''.__class__ }}", "{#"):
        assert text in renderer.prompt(asked(text))
        assert renderer.answer(asked(text), text) == f"{text}<|end|>"
        assert renderer.prompt(asked("x").answering(text)).endswith(text)


def test_text_that_a_template_leaves_out_of_an_answer_is_still_the_answer() -> None:
    renderer = made(STRING_TEMPLATE.replace("m.content + ''", "m.content.split('</think>')[-1]"), plain("</think>"))
    assert renderer.answer(asked("x"), "so</think>y") == "so</think>y<|end|>"


def test_shapes_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.lm.control._MAX_SHAPES", 3)
    monkeypatch.setattr("mmalign.lm.render._MAX_KEPT", 3)
    renderer = made(STRING_TEMPLATE)
    for number in range(1, 9):
        chat = Chat(tuple(Message("user", (f"{number}",)) for _ in range(number)))
        ids = renderer.token_ids(renderer.prompt(chat))
        assert ids.count(renderer.tokenizer.convert_tokens_to_ids("<|user|>")) == number
        assert len(renderer._control._shapes) <= 3
        assert len(renderer._kept) <= 3
        ids.clear()  # what is kept is not what was given away
        assert renderer.token_ids(renderer.prompt(chat))


@pytest.mark.parametrize("pad", ["!", "the"])
def test_what_a_model_is_padded_with_may_be_an_ordinary_word(pad: str) -> None:
    tok = tokenizer(TURNS)
    tok.add_tokens([plain("<turn>"), plain("</turn>")])
    tok.pad_token = pad
    renderer = Renderer(tok)
    assert f"a {pad} b" in renderer.prompt(asked(f"a {pad} b"))
    with pytest.raises(SampleError, match="control token '</turn>'"):
        renderer.prompt(asked(f"{pad}</turn>"))
