"""Attention that needs a mask for the ends of rows only gives what a mask over whole rows gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig, MistralForCausalLM

from mmalign.lm import attention
from mmalign.lm.attention import TailMask
from mmalign.lm.load import Loaded
from mmalign.lm.prefix import Branches, Packed, arguments, pack
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.logps import completion_logps
from mmalign.train.weights import trainable, training_mode
from tests.lm.test_prefix import packs
from tests.models import READING, SEEING, WATCHING, tiny
from tests.train.rows import make_rows, quick
from tests.train.test_shared import assert_equal, measured
from tests.train.test_sharing import SIZES, made

#: Families all of whose layers see everything before them.
CAUSAL = [*READING, *dict.fromkeys((*SEEING, *WATCHING, "qwen2-vl", "idefics3", "tiny"))]


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[TailMask]]:
    """The masks of all calls of attention that was done in two parts."""
    seen: list[TailMask] = []
    own = attention._attend

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: TailMask, *args: Any, **more: Any) -> Tensor:
        seen.append(attn_mask)
        return own(query, key, value, attn_mask, *args, **more)

    with patch.context() as changed:
        changed.setattr(attention, "_attend", attend)
        yield seen


@contextmanager
def whole(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """With masks over whole rows."""
    with patch.context() as changed:
        changed.setattr(Branches, "tail", Branches.visible)
        yield


def shared(loaded: Loaded, rows: Sequence[PairRow], root: Path) -> PairBatch:
    return replace(Collator(loaded.renderer, root, MediaLimits()), shares=True)(rows)


def num_layers(loaded: Loaded) -> int:
    return int(loaded.model.config.get_text_config().num_hidden_layers)


# The mask ------------------------------------------------------------------------------------------------------------


@given(packs())
@settings(deadline=None)
def test_real_tokens_get_the_same_and_padding_gets_numbers(
    made: tuple[list[list[int]], list[int], list[list[int]], Packed],
) -> None:
    branches = made[-1].branches
    count, width = branches.owner.shape
    tail = branches.tail()
    results = []
    for mask in (tail, branches.visible()):
        torch.manual_seed(0)
        given = [torch.randn(count, 2, width, size, dtype=torch.float64, requires_grad=True) for size in (4, 4, 3)]
        found = scaled_dot_product_attention(*given, attn_mask=mask, scale=0.7)
        assert found.shape == (count, 2, width, 3)
        assert found.isfinite().all()
        real = (branches.owner >= 0)[:, None, :, None]
        found = found.where(real, 0)
        (found * torch.randn(found.shape, dtype=torch.float64)).sum().backward()
        results.append([found.detach(), *(value.grad for value in given)])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert (one - other).abs().max() < 1e-12


def packed(prompts: Sequence[int], answers: Sequence[int], each: int = 2) -> Branches:
    """Prompts and, behind each, `each` answers of such lengths, which begin differently."""
    width = max(prompts)
    mask = (torch.arange(width) < torch.tensor(prompts)[:, None]).long()
    inputs = {"input_ids": mask, "attention_mask": mask}
    rows = [row for row in range(len(prompts)) for _ in range(each)]
    texts = [[n] + [9] * (answers[row] - 1) for row in range(len(prompts)) for n in range(each)]
    return pack(inputs, rows, texts, 0).branches


def test_only_what_is_not_shared_has_a_mask() -> None:
    mask = packed([50, 50], [8, 8]).tail()
    assert isinstance(mask, TailMask)
    assert mask.shape == (2, 1, 14, 64)
    assert mask.starts == (50, 50)
    uneven = packed([50, 20], [8, 5]).tail()
    assert isinstance(uneven, TailMask)
    assert uneven.shape == (2, 1, 14, 64)
    assert uneven.starts == (50, 20), "a short prompt does not make the mask of a long one grow"


def test_without_a_token_that_all_share_the_mask_is_whole() -> None:
    branches = Branches(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 1, 0]]))
    assert not isinstance(branches.tail(), TailMask)
    assert torch.equal(branches.tail(), branches.visible())


def test_what_all_share_behind_an_answer_has_a_mask() -> None:
    branches = Branches(torch.tensor([[0, 0, 1, 0, 2]]), torch.tensor([[0, 1, 2, 2, 3]]))
    mask = branches.tail()
    assert isinstance(mask, TailMask)
    assert mask.starts == (2,)
    assert torch.equal(mask.as_subclass(Tensor), branches.visible()[:, :, 2:])


def test_copies_are_such_masks_and_parts_are_not() -> None:
    mask = packed([5], [3]).tail()
    assert isinstance(mask, TailMask)
    for copy in (
        mask.to("cpu", copy=True),
        mask.detach(),
        mask.clone(),
        mask.contiguous(),
        mask[:, :, :, :],
        +mask.float(),
    ):
        assert isinstance(copy, TailMask)
        assert copy.starts == mask.starts
    for part in (mask[:, :, 1:], mask[0], mask.sum(), mask.float().mean()):
        assert type(part) is Tensor


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_every_family_attends_in_two_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(name)
    model = loaded.model.requires_grad_(True)
    batch = shared(loaded, make_rows(tmp_path, 3, pictures=int(name not in READING)), tmp_path)
    with counted(monkeypatch) as seen:
        found = measured(model, batch)
    assert len(seen) == num_layers(loaded)
    assert len({id(mask) for mask in seen}) == 1, "it is made once, not once for each layer"
    assert len(set(seen[0].starts)) > 1, "prompts of different lengths"
    with counted(monkeypatch) as seen, whole(monkeypatch):
        expected = measured(model, batch)
    assert not seen
    assert_equal(found, expected)


@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["lora", "full"])
def test_what_is_computed_twice_has_the_mask_twice(
    lora: LoraConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("qwen3-vl")
    torch.manual_seed(0)
    model = trainable(loaded.model, quick(lora=lora, gradient_checkpointing=True))
    training_mode(model)
    batch = shared(loaded, make_rows(tmp_path, 3), tmp_path)
    with counted(monkeypatch) as seen:
        found = measured(model, batch)
    assert len(seen) == 2 * num_layers(loaded)
    with whole(monkeypatch):
        assert_equal(found, measured(model, batch))


def test_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("qwen2.5-vl")
    batch = shared(loaded, make_rows(tmp_path, 3), tmp_path)
    exact = completion_logps(loaded.model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = completion_logps(loaded.model, batch)
        with whole(monkeypatch):
            rounded = completion_logps(loaded.model, batch)
    noise = (rounded - exact).square().mean().sqrt()
    assert noise > 1e-4
    assert (found - exact).square().mean().sqrt() < 1.5 * noise


@pytest.mark.parametrize(("window", "expected"), [(6, 0), (4096, 2)])
def test_windows_need_a_whole_mask_where_they_hide_something(
    window: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = made(MistralForCausalLM, MistralConfig(**SIZES, vocab_size=400, sliding_window=window))
    with counted(monkeypatch) as seen:
        completion_logps(loaded.model, shared(loaded, make_rows(tmp_path, 3, pictures=0), tmp_path))
    assert len(seen) == expected


@pytest.mark.parametrize(("pictures", "expected"), [(1, 0), (0, 1)])
def test_pictures_that_see_themselves_both_ways_need_a_whole_mask(
    pictures: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("gemma3")
    batch = shared(loaded, make_rows(tmp_path, 3, pictures=pictures), tmp_path)
    with counted(monkeypatch) as seen:
        found = completion_logps(loaded.model, batch)
    assert len(seen) == expected, "one of its two layers has a window"
    with whole(monkeypatch):
        assert (found - completion_logps(loaded.model, batch)).abs().max() < 1e-4


def test_eager_attention_has_a_whole_mask(tmp_path: Path) -> None:
    loaded = tiny("llama")
    loaded.model.set_attn_implementation("eager")
    batch = shared(loaded, make_rows(tmp_path, 2, pictures=0), tmp_path)
    assert batch.branches is not None
    mask = arguments(loaded.model, batch.inputs, batch.branches)["attention_mask"]
    assert type(mask) is Tensor
    assert mask.shape[-1] == mask.shape[-2]


def test_nothing_stays_behind_when_a_forward_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("qwen3-vl")
    before = str(loaded.model.config), loaded.model.config.get_text_config()._attn_implementation
    rows = make_rows(tmp_path, 2)
    plain = Collator(loaded.renderer, tmp_path, MediaLimits())(rows)
    expected = completion_logps(loaded.model, plain)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            completion_logps(loaded.model, shared(loaded, rows, tmp_path))
    assert before == (str(loaded.model.config), loaded.model.config.get_text_config()._attn_implementation)
    assert torch.equal(completion_logps(loaded.model, plain), expected)


@torch.no_grad()
def test_threads_do_not_meet(tmp_path: Path) -> None:
    loaded = tiny("qwen3-vl")
    rows = make_rows(tmp_path, 4)
    asked = []
    for batch in (shared(loaded, rows[:2], tmp_path), shared(loaded, rows[1:], tmp_path)) * 4:
        assert batch.branches is not None
        asked.append(arguments(loaded.model, batch.inputs, batch.branches))
    expected = [loaded.model(**one).logits for one in asked]

    def logits(number: int) -> Tensor:
        with torch.no_grad():  # which is a thread's own
            found: Tensor = loaded.model(**asked[number]).logits
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, range(len(asked))))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
