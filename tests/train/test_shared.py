"""One row for all answers to a prompt: log-probs, divergence and gradients are those of a row for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.lm.load import Loaded
from mmalign.lm.prefix import Branches
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs.head import Head
from mmalign.train.logprobs.logps import Anchor, completion_logps, completion_states, completion_terms
from mmalign.train.weights import trainable, training_mode
from mmalign.types import Chat, Media, Message
from tests.models import READING, SEEING, WATCHING, clip, picture, tiny
from tests.train.rows import make_rows, quick
from tests.train.test_mixed import pairs_about

EVERY = [*READING, *dict.fromkeys((*SEEING, *WATCHING, "qwen2-vl", "idefics3", "gemma3", "tiny"))]
Result = tuple[Tensor, dict[str, Tensor]]


def batches(loaded: Loaded, rows: Sequence[PairRow], root: Path = Path()) -> tuple[PairBatch, PairBatch]:
    """The same pairs with a row per answer, and with a row per context."""
    collate = Collator(loaded.renderer, root, MediaLimits())
    plain, shared = collate(rows), replace(collate, shares=True)(rows)
    assert shared.branches is not None
    assert torch.equal(plain.lengths, shared.lengths)
    assert torch.equal(plain.places.labels, shared.places.labels)
    assert torch.equal(plain.mask, shared.mask)
    return plain, shared


def measured(model: nn.Module, batch: PairBatch, seed: int = 0) -> Result:
    """Log-probs, and gradients of a weighted sum of them."""
    model.zero_grad()
    values = completion_logps(model, batch)
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    (values * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return values.detach(), gradients


def assert_equal(found: Result, expected: Result, tolerance: float = 1e-5) -> None:
    """Relative to the largest number of every tensor, or to a thousandth of the largest gradient of all.

    Without rotary positions a number added to all keys changes no softmax: the gradient of such a bias is nothing but
    rounding.
    """
    (values, gradients), (wanted, plainly) = found, expected
    assert (values - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert gradients.keys() == plainly.keys()
    largest = max(value.abs().max().item() for value in plainly.values())
    assert largest > 0.1
    for name, value in plainly.items():
        scale = max(value.abs().max().item(), 1e-3 * largest)
        if "vision" in name and name.endswith("k_proj.bias"):
            assert max(value.abs().max(), gradients[name].abs().max()) < 1e-5 * largest
            continue
        assert (gradients[name] - value).abs().max() <= tolerance * scale, name


def compare(loaded: Loaded, rows: Sequence[PairRow], root: Path = Path(), model: Any = None) -> None:
    model = loaded.model.requires_grad_(True) if model is None else model
    plain, shared = batches(loaded, rows, root)
    assert shared.inputs["input_ids"].numel() < plain.inputs["input_ids"].numel()
    assert_equal(measured(model, shared), measured(model, plain))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", EVERY)
def test_pictures_and_texts(name: str, kernel: str, tmp_path: Path) -> None:
    loaded = tiny(name)
    loaded.model.set_attn_implementation(kernel)
    for count in (0,) if name in READING else (1, 2):
        compare(loaded, make_rows(tmp_path, 3, pictures=count), tmp_path)


@pytest.mark.parametrize("name", [*WATCHING, "qwen2-vl", "idefics3", "gemma3", "tiny", "llava"])
def test_clips(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tiny(name), pairs_about([clip(0), clip(1, size=(48, 32)), clip(2, size=(32, 56))], monkeypatch))


@pytest.mark.parametrize("name", SEEING)
def test_pairs_with_and_without_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    media: list[Media | None] = [picture(1), None, picture(2, size=(64, 32)), None]
    compare(tiny(name), pairs_about(media, monkeypatch))


@pytest.mark.parametrize("name", ["llama", "qwen3", *SEEING])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed twice"])
@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["lora", "full"])
def test_training(name: str, lora: LoraConfig | None, checkpointing: bool, tmp_path: Path) -> None:
    loaded = tiny(name)
    torch.manual_seed(0)
    model = trainable(loaded.model, quick(lora=lora, gradient_checkpointing=checkpointing, freeze_vision=False))
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "lora_B" in part:
                weight.normal_(0, 0.1)
    training_mode(model)
    compare(loaded, make_rows(tmp_path, 3, pictures=int(name in SEEING)), tmp_path, model)


@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
def test_divergence(name: str, tmp_path: Path) -> None:
    loaded, reference = tiny(name), tiny(name, seed=1).model
    model = loaded.model.requires_grad_(True)
    results = []
    for batch in batches(loaded, make_rows(tmp_path, 3, pictures=int(name in SEEING)), tmp_path):
        _, states = completion_states(reference, batch)
        model.zero_grad()
        logps, divergence = completion_terms(model, batch, Anchor(states, Head.of(reference)))
        (logps.sum() + divergence.sum()).backward()
        gradients = {part: weight.grad.clone() for part, weight in model.named_parameters() if weight.grad is not None}
        results.append((torch.cat([logps.detach().flatten(), divergence.detach().flatten()]), gradients))
    assert_equal(results[1], results[0])


def test_in_bfloat16_the_difference_is_that_of_rounding(tmp_path: Path) -> None:
    loaded = tiny("qwen3-vl")
    plain, shared = batches(loaded, make_rows(tmp_path, 3), tmp_path)
    exact = completion_logps(loaded.model, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = completion_logps(loaded.model, plain), completion_logps(loaded.model, shared)
    noise = (rounded - exact)[plain.mask].square().mean().sqrt()
    assert noise > 1e-4
    assert (found - exact)[plain.mask].square().mean().sqrt() < 1.5 * noise


def test_many_pairs_about_one_context_and_equal_answers(tmp_path: Path) -> None:
    """K completions are pairs with the same context; an answer may be twice there, or the beginning of another."""
    loaded, row = tiny("qwen3-vl"), make_rows(tmp_path, 1)[0]
    texts = [("Yes.", "Yes."), ("There is a boat", "There is"), ("No.", "There is a crab.")]
    rows = [replace(row, id=f"p{i}", chosen=chosen, rejected=rejected) for i, (chosen, rejected) in enumerate(texts)]
    _, shared = batches(loaded, rows, tmp_path)
    assert len(shared.inputs["input_ids"]) == 1
    compare(loaded, rows, tmp_path)


def test_contexts_that_differ_have_rows_of_their_own(tmp_path: Path) -> None:
    loaded = tiny("qwen2.5-vl")
    first, second, third = make_rows(tmp_path, 3)
    rows = [first, replace(second, rejected_context=third.context), third]
    _, shared = batches(loaded, rows, tmp_path)
    assert len(shared.inputs["input_ids"]) == 3, "the third pair's context is the second's other one"
    compare(loaded, rows, tmp_path)


def test_a_prompt_whose_end_fuses_with_some_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of the answers the prompt's last token is another one."""
    loaded = tiny("llava")
    tokenizer = loaded.processor.tokenizer
    chat = Chat((Message("user", (picture(1), "Describe it.")), Message("assistant", ("There i",))))
    rows = [
        PairRow(id="p", sample_id="s", method="t", context=chat.to_rows(), chosen="s a boat.", rejected=" no boat.")
    ]
    monkeypatch.setattr("mmalign.train.data.collate.open_context", lambda turns, root, limits, pair: chat)
    prompt = loaded.renderer.prompt(chat)
    whole = tokenizer(prompt + "s a boat.")["input_ids"]
    assert whole[: len(tokenizer(prompt)["input_ids"])] != tokenizer(prompt)["input_ids"], "the case is real"
    compare(loaded, rows)


@pytest.mark.parametrize("name", ["llama", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("fault", ["leak", "late"])
def test_faults_are_seen(name: str, fault: str, tmp_path: Path) -> None:
    """Answers that see each other, or that stand at wrong positions, give other numbers: the tests above are live."""
    loaded = tiny(name)
    plain, shared = batches(loaded, make_rows(tmp_path, 3, pictures=int(name in SEEING)), tmp_path)
    assert shared.branches is not None
    owner, depth = shared.branches.owner, shared.branches.depth
    wrong = Branches(owner.clamp(max=0), depth) if fault == "leak" else Branches(owner, depth + 3 * (owner > 0))
    found = completion_logps(loaded.model, replace(shared, branches=wrong))
    assert (found - completion_logps(loaded.model, plain)).abs().max() > 0.01
