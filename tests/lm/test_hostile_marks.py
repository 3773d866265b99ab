"""Texts for models behind servers: what could be a mark of the chat there is not sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import SampleError
from mmalign.lm.marks import refuse_marks
from mmalign.lm.server.wire import answered, generate_body, score_body
from mmalign.types import Chat, Message, Sampling
from tests.models import SPECIALS, VIDEO_SPECIALS, picture

MARKS = [
    *SPECIALS,
    *VIDEO_SPECIALS,
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|endoftext|>",
    "<\uff5cAssistant\uff5c>",
    "<start_of_turn>",
    "<end_of_turn>",
    "</s>",
    "<s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<image>",
    "<video>",
    "<img>",
    "[IMG]",
    "<row_1_col_2>",
]


def ask(*parts: object) -> Chat:
    return Chat((Message("user", parts),))  # type: ignore[arg-type]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_not_sent(mark: str) -> None:
    chats = [
        ask(f"see {mark} x"),
        ask(mark[:2], "", mark[2:]),
        Chat((Message("system", (mark,)), Message("user", ("x",)))),
    ]
    for chat in chats:
        with pytest.raises(SampleError, match="which models read as a mark"):
            generate_body(chat, Sampling(), seed=0, kind="vllm", clips="frames")
    with pytest.raises(SampleError, match="the assistant text contains"):
        score_body(answered(ask("x").answering(mark[:1]), mark[1:]), clips="frames")


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "[1] and [x]", "<b>x</b>", "<p>", "x <| y |> z", "{{ 1 }}", "\x00", ""]
)
def test_other_texts_are_sent_as_they_are(text: str) -> None:
    body = generate_body(ask(text), Sampling(), seed=0, kind="vllm", clips="frames")
    assert body["messages"] == [{"role": "user", "content": text}]


def test_a_picture_keeps_two_halves_apart() -> None:
    refuse_marks(ask("<|im_", picture(), "end|>").messages)


def test_far_too_long_and_half_a_character() -> None:
    with pytest.raises(SampleError, match="the chat has 9,000,000 characters, servers are sent at most 8,388,608"):
        refuse_marks(ask("a" * 9_000_000).messages)
    with pytest.raises(SampleError, match="half a character"):
        refuse_marks(ask("a\ud800").messages)


@given(st.text(alphabet="<|>/[]sINTim_\uff5c age", max_size=60))
def test_what_is_let_through_holds_none(text: str) -> None:
    try:
        refuse_marks(ask(text).messages)
    except SampleError:
        assert any(start in text for start in ("<|", "<s>", "</s>", "<i", "</i", "[I", "[/I", "<\uff5c"))
    else:
        assert not any(mark in text for mark in MARKS)
