"""Rows of one prompt and many answers: the right tokens, places and sight."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.lm.prefix import Packed, pack

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
    return contexts, prompts, answers, pack(inputs, prompts, answers, PAD)


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
            own = own[: len(contexts[row]) + len(answers[n]) - 1]  # behind it the stem of an empty rest
            assert ids[row, own].tolist() == contexts[row] + answers[n][:-1]
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
