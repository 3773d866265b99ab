"""Rows of one prompt and many answers: the right tokens, places and sight."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.lm.batch import BatchModel
from mmalign.lm.local import LocalLM
from mmalign.lm.prefix import Packed, pack
from mmalign.types import Chat, Message
from tests.models import READING, SEEING, WATCHING, clip, picture, tiny

PAD = 99
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@st.composite
def packs(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[list[int]], Packed]:
    """Prompts, which one each answer follows, the answers, and all of it packed."""
    contexts = draw(st.lists(TOKENS, min_size=1, max_size=3))
    prompts = draw(st.lists(st.integers(0, len(contexts) - 1), min_size=1, max_size=6))
    answers = [draw(TOKENS) for _ in prompts]
    width = max(map(len, contexts))
    inputs = {
        "input_ids": torch.tensor([tokens + [PAD] * (width - len(tokens)) for tokens in contexts]),
        "attention_mask": torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in contexts]),
        "kinds": torch.tensor([[5] * len(tokens) + [0] * (width - len(tokens)) for tokens in contexts]),
        "pixel_values": torch.ones(7, 3),
    }
    return contexts, prompts, answers, pack(inputs, prompts, answers, PAD, keep_last=draw(st.booleans()))


@given(packs())
@settings(deadline=None)
def test_every_answer_is_alone_with_its_prompt(
    made: tuple[list[list[int]], list[int], list[list[int]], Packed],
) -> None:
    contexts, prompts, answers, packed = made
    ids, owner, depth = packed.inputs["input_ids"], packed.branches.owner, packed.branches.depth
    for window in (None, 2):
        visible = packed.branches.visible(window)[:, 0]
        for n, row in enumerate(prompts):
            own = ((owner[row] == 0) | (owner[row] == n + 1)).nonzero().squeeze(-1)
            kept = answers[n] if packed.ends is not None else answers[n][:-1]
            own = own[: len(contexts[row]) + len(kept)]  # behind it the stem of an empty rest
            assert ids[row, own].tolist() == contexts[row] + kept
            if packed.ends is not None:
                assert packed.ends[n].tolist() == [row, own[-1]]
            assert depth[row, own].tolist() == list(range(len(own)))
            expected = torch.ones(len(own), len(own)).tril()
            expected = expected if window is None else expected.triu(1 - window)
            assert torch.equal(visible[row][own][:, own], expected.bool())
            assert visible[row][own].sum() == expected.sum(), "nothing of other answers is seen"
        assert visible.any(-1).all()


@given(packs())
@settings(deadline=None)
def test_every_token_is_predicted_where_its_forerunner_stands(
    made: tuple[list[list[int]], list[int], list[list[int]], Packed],
) -> None:
    contexts, prompts, answers, packed = made
    places, owner, depth = packed.places, packed.branches.owner, packed.branches.depth
    assert places.labels.tolist() == [token for answer in answers for token in answer]
    assert places.rows.tolist() == [row for row, answer in zip(prompts, answers, strict=True) for _ in answer]
    at = 0
    for n, (row, answer) in enumerate(zip(prompts, answers, strict=True)):
        columns = places.columns[at : at + len(answer)]
        at += len(answer)
        assert depth[row, columns].tolist() == [len(contexts[row]) - 1 + i for i in range(len(answer))]
        assert set(owner[row, columns].tolist()) <= {0, n + 1}


def test_what_answers_begin_with_is_shared_too() -> None:
    inputs = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    packed = pack(inputs, [0, 0], [[1, 2, 3, 4], [1, 2, 5, 6]], PAD)
    assert packed.inputs["input_ids"].tolist() == [[7, 8, 1, 2, 3, 5]]
    assert packed.branches.owner.tolist() == [[0, 0, 0, 0, 1, 2]]
    assert packed.branches.depth.tolist() == [[0, 1, 2, 3, 4, 4]]
    assert packed.places.columns.tolist() == [1, 2, 3, 4, 1, 2, 3, 5]


def test_other_inputs_keep_pace_with_the_tokens() -> None:
    inputs = {
        "input_ids": torch.tensor([[7, 8, 9], [7, PAD, PAD]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0], [1, 0, 0]]),
        "pixel_values": torch.ones(7, 3),
    }
    packed = pack(inputs, [0, 1], [[1, 2], [1, 2, 3]], PAD)
    assert packed.inputs["input_ids"].tolist() == [[7, 8, 9, 1], [7, 1, 2, PAD]]
    assert packed.inputs["mm_token_type_ids"].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert packed.inputs["pixel_values"] is inputs["pixel_values"]
    assert packed.branches.owner.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]]


# Scores --------------------------------------------------------------------------------------------------------------

ANSWERS = ("Yes.", "There is a red boat.", "There is a big blue fish at the top.", "No.")


def chats(name: str) -> list[Chat]:
    """Two prompts of different length, with media where the model sees."""
    shown = [] if name in READING else [clip(1) if name in WATCHING else picture(1, size=(48, 32))]
    return [Chat((Message("user", (*shown, text)),)) for text in ("What is there?", "Is there a boat in it? Say so.")]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*READING, *dict.fromkeys((*SEEING, *WATCHING, "gemma3", "tiny"))])
@torch.inference_mode()
def test_scores_of_many_answers_are_those_of_each(name: str, kernel: str, caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny(name)
    loaded.model.set_attn_implementation(kernel)
    model = BatchModel(loaded)
    prompts = [model.prompt(chat) for chat in chats(name)]
    asked = [(prompt, model.renderer.answer(prompt.chat, text)) for text in ANSWERS for prompt in prompts]
    alone = [model.score([prompt], [answer])[0] for prompt, answer in asked]
    rows: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for _ in range(2):
        together = model.score(*zip(*asked, strict=True))
        for found, expected in zip(together, alone, strict=True):
            assert found.tokens == expected.tokens
            assert found.logps == pytest.approx(expected.logps, abs=1e-4)
    assert rows == [8, 2, 2], "the first time plain rows are computed, too"
    assert not caplog.records


@torch.inference_mode()
def test_a_model_that_cannot_share_scores_in_plain_rows(caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny("llama")
    model = BatchModel(loaded)
    prompt = model.prompt(chats("llama")[0])
    answers = [model.renderer.answer(prompt.chat, text) for text in ANSWERS]
    alone = [model.score([prompt], [answer])[0] for answer in answers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.lm.prefix.Branches.visible", lambda *_: torch.ones(1, 1, 1, 1, dtype=torch.bool))
        for _ in range(2):
            for found, expected in zip(model.score([prompt] * 4, answers), alone, strict=True):
                assert found.logps == pytest.approx(expected.logps, abs=1e-4)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "log-probs are off by up to" in record.getMessage()


async def test_candidates_of_a_chat_share_its_prompt() -> None:
    loaded = tiny("qwen3-vl")
    rows: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    async with LocalLM(loaded) as lm:
        (chat, other) = chats("qwen3-vl")
        await lm.score(other, ANSWERS)
        rows.clear()
        await lm.score(chat, ANSWERS)
        await lm.choose(other, [("red boat", "a red boat"), ("blue fish", "a blue fish")])
    assert rows[0] == 1
    assert set(rows) == {1}
