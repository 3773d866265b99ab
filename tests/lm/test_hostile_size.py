"""Prompts that are far too long are refused before they are tokenised as a whole, and prompts that fit are not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.errors import SampleError
from mmalign.lm import size
from mmalign.lm.local import LocalLM
from mmalign.lm.size import TextLimit
from mmalign.types import Chat, Message, Sampling
from tests.models import picture, shared, tokenizer

HUGE = 30_000_000


class Counting:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self) -> None:
        self._inner = tokenizer()
        self.seen = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.seen += len(text)
        return self._inner(text, **options)

    def get_vocab(self) -> dict[str, int]:
        vocab: dict[str, int] = self._inner.get_vocab()
        return vocab


def ask(*parts: Any) -> Chat:
    return Chat((Message("user", parts),))


@pytest.mark.parametrize("text", ["a", "\x00", "漢", "\ud800", " ", "<", "a red boat. ", "{{", "\u202e"])
@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
def test_tens_of_megabytes_are_refused_at_once(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shared(name).renderer
    monkeypatch.setattr(made, "token_ids", lambda text: pytest.fail("tokenised"))
    monkeypatch.setattr(made, "_apply", lambda turns: pytest.fail("rendered"))
    chats = [ask(text * (HUGE // len(text))), ask("x", text * (HUGE // len(text)))]
    chats += [Chat((Message("system", (text * HUGE,)), Message("user", ("x",))))] if len(text) == 1 else []
    for chat in chats:
        with pytest.raises(SampleError, match=r"the chat has [\d,]+ characters; the 512 tokens") as caught:
            made.prompt(chat)
        assert len(str(caught.value)) < 200


def test_a_long_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shared("llama").renderer
    made.prompt(ask("x"))
    monkeypatch.setattr(made._control, "refuse", lambda turns: None if turns[0].role == "user" else pytest.fail("read"))
    with pytest.raises(SampleError, match="characters"):
        made.answer(ask("x"), "y" * HUGE)


def test_no_more_is_counted_than_would_fit() -> None:
    counting = Counting()
    limit = TextLimit(counting, 20_000)
    with pytest.raises(SampleError, match="more than 20,000 tokens in its first 32,768 characters"):
        limit.refuse(["\x01" * 200_000])
    assert counting.seen == 2 * size._SLICE


def test_a_model_without_a_limit_has_one() -> None:
    counting = Counting()
    limit = TextLimit(counting, None)
    with pytest.raises(SampleError, match="the 262,144 tokens that the model takes hold at most"):
        limit.refuse(["a" * 400_000_000])
    assert counting.seen == 0


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), times=st.integers(1, 400))
def test_what_fits_is_never_refused(text: str, times: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size, "_SMALL", 0)
        patch.setattr(size, "_SLICE", 64)
        whole = text * times
        tok = tokenizer()
        num = len(tok(whole, add_special_tokens=False)["input_ids"])
        TextLimit(tok, num).refuse([whole])
        TextLimit(tok, num).refuse([whole[:70], "", whole[70:]])


def test_halves_of_characters_are_no_text() -> None:
    for name in ("llama", "llava", "tiny"):
        made = shared(name).renderer
        for text in ("\ud800", "a\udfffb", "\udc80"):
            with pytest.raises(SampleError, match=r"half a character \(a lone surrogate\) at place [01]"):
                made.prompt(ask(text))
            with pytest.raises(SampleError, match="half a character"):
                made.answer(ask("x"), text)
    assert "\U0001f41f" in shared("llama").renderer.prompt(ask("\U0001f41f"))


HOSTILE = ["<|end|>", "\ud800", "x" * 1_000_000, "", "\x00\x1b[2J", "<|", "{{ 1 }}", "|>" * 40]


@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
def test_the_model_answers_or_says_why_not(name: str) -> None:
    """Through the verbs, with the begun and fed-back answers that methods ask about."""

    async def all_of() -> None:
        media = (picture(),) if name == "qwen3-vl" else ()
        async with LocalLM(shared(name)) as lm:
            for text in HOSTILE:
                chat = ask(*media, text)
                for chats, said in ((chat, "y"), (ask(*media, "x"), text), (ask(*media, "x").answering(text), text)):
                    calls = (
                        lm.generate(chats, Sampling(max_new_tokens=2), seed=0),
                        lm.score(chats, [said]),
                        lm.choose(chats, [["Yes"], ["No"]]),
                    )
                    for result in await asyncio.gather(*calls, return_exceptions=True):
                        assert not isinstance(result, BaseException) or type(result) is SampleError

    asyncio.run(all_of())
