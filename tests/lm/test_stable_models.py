"""Float32 models of all families: exact logits are exact, and no answer, choice or score hangs on the batch."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.lm import batch, sampling
from mmalign.lm.batch import BatchModel
from mmalign.lm.exact import Exact, grown, in_double
from mmalign.lm.local import LocalLM
from mmalign.lm.stable import FINE_GRID
from mmalign.types import Chat, Choice, Completion, Media, Message, Sampling, TokenLogps
from tests.models import READING, SEEING, WATCHING, clip, picture, tiny

TEXT = (*READING, "mixtral")
ALL = list(dict.fromkeys((*TEXT, *SEEING, *WATCHING, "gemma3")))
YES = (("yes",), ("no",))


def chat(name: str, text: str, number: int = 1) -> Chat:
    shown: list[Media] = [] if name in TEXT else [clip(number) if name in WATCHING else picture(number)]
    return Chat((Message("user", (*shown, text)),))


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_exact_logits_are_those_of_the_model_in_float64_throughout(name: str) -> None:
    model = BatchModel(tiny(name))
    prompts = [model.prompt(chat(name, text)) for text in ("Is it?", "Is it a boat?")]
    inputs = model._encode([prompt.text for prompt in prompts], prompts, "right")
    is_last = inputs["attention_mask"].cumsum(1) == inputs["attention_mask"].sum(1, keepdim=True)
    with in_double(model.model):
        together = model._logits(inputs, is_last & inputs["attention_mask"].bool())
    for prompt, beside in zip(prompts, together, strict=True):
        (found,) = model.next_logits([prompt])
        exact = model._exact_next(prompt, found)
        assert exact is not None
        assert exact.dtype == torch.float64
        assert (exact - found).abs().max() < 1e-5 * exact.abs().max()
        assert (exact - beside).abs().max() < 1e-12 * exact.abs().max()  # in float32 1e-7 at best


@pytest.mark.parametrize("name", ALL)
def test_exact_forwards_in_the_middle_of_answers_change_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is drawn from exact logits here, while the others' answers are under way."""
    asked = [chat(name, text, number) for number, text in enumerate(("Say.", "Is it a red boat?", "A tree?"), 1)]
    drawn = [Sampling(max_new_tokens=6), Sampling(temperature=1.0, max_new_tokens=6), Sampling(max_new_tokens=4)]
    model = BatchModel(tiny(name))
    prompts = [model.prompt(one) for one in asked]
    with torch.inference_mode():
        plain = model.generate(prompts, drawn, [1, 2, 3])
        monkeypatch.setattr(sampling, "largest", lambda logits: torch.full_like(logits[:, :1], 1e9))
        calls: list[int] = []
        real = model._exact_next
        monkeypatch.setattr(model, "_exact_next", lambda *given: (calls.append(1), real(*given))[1])
        assert model.generate(prompts, drawn, [1, 2, 3]) == plain
    assert len(calls) >= 9


@pytest.mark.parametrize("name", ["llama", "qwen3-vl"])
async def test_numbers_are_the_same_to_the_last_bit_in_all_batches(name: str) -> None:
    loaded = tiny(name)
    asked = [chat(name, text, number) for number in (1, 2) for text in ("Is it?", "Is it a red boat?", "A tree, then?")]

    async def answers(size: int, order: list[int]) -> tuple[dict[int, Choice], dict[int, Any]]:
        async with LocalLM(loaded, max_batch_size=size) as lm:
            chosen = await asyncio.gather(*(lm.choose(asked[n], YES) for n in order))
            scored = await asyncio.gather(*(lm.score(asked[n], ["A boat.", "A big blue fish."]) for n in order))
        return dict(zip(order, chosen, strict=True)), dict(zip(order, scored, strict=True))

    first = await answers(64, [0, 1, 2, 3, 4, 5])
    assert await answers(1, [5, 3, 1, 0, 2, 4]) == first
    assert await answers(4, [2, 5, 0, 1, 4, 3]) == first
    for row in first[1].values():
        assert all(logp % FINE_GRID == 0 for score in row for logp in score.logps)


async def test_rows_do_not_turn_each_others_positions() -> None:
    """LongRoPE takes other angles for a whole batch once one of its rows is long (here beyond 64 tokens)."""
    loaded = tiny("phi3")
    drawn = Sampling(temperature=1.0, max_new_tokens=12)
    asked = [Chat((Message("user", ("A tree? " * times,)),)) for times in (1, 2, 3, 10, 12, 40)]

    async def answers(size: int, order: list[int]) -> list[tuple[Completion, Choice, list[TokenLogps]]]:
        async with LocalLM(loaded, max_batch_size=size) as lm:
            made = await asyncio.gather(*(lm.generate(asked[n], drawn, seed=n) for n in order))
            chosen = await asyncio.gather(*(lm.choose(asked[n], YES) for n in order))
            scored = await asyncio.gather(*(lm.score(asked[n], ["A boat.", "A tree."]) for n in order))
        found = dict(zip(order, zip(made, chosen, scored, strict=True), strict=True))
        return [found[n] for n in range(len(asked))]

    lengths = [len(loaded.renderer.token_ids(loaded.renderer.prompt(chat))) for chat in asked]
    assert sum(length + 12 <= 32 for length in lengths) >= 1
    assert sum(length <= 64 < length + 12 for length in lengths) >= 1
    assert sum(length > 64 for length in lengths) >= 1
    alone = await answers(1, [0, 1, 2, 3, 4, 5])
    assert await answers(64, [5, 3, 1, 0, 2, 4]) == alone


def test_what_a_model_writes_into_its_own_tensors_counts_and_is_forgotten() -> None:
    class Noting(torch.nn.Module):
        angles: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("angles", torch.ones(2))

        def forward(self, given: Tensor) -> Tensor:
            self.angles.copy_(given)
            self.angles[0] = 5
            return self.angles * 2

    model = Noting()
    with torch.inference_mode(), in_double(model):
        assert model(torch.tensor([3.0, 4.0])).tolist() == [10, 8]
    assert model.angles.tolist() == [1, 1]


async def test_a_choice_at_an_edge_is_told_from_exact_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHOICE_SLACK", 1.0)  # every value is near an edge
    asked: list[int] = []
    real = BatchModel._exact_next
    monkeypatch.setattr(BatchModel, "_exact_next", lambda *given: (asked.append(1), real(*given))[1])
    async with LocalLM(tiny("llama")) as lm:
        told = await lm.choose(chat("llama", "Is it?"), YES)
        assert asked
        monkeypatch.setattr(batch, "CHOICE_SLACK", 0.0)
        assert await lm.choose(chat("llama", "Is it?"), YES) == told


async def test_a_model_without_float64_answers_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch, "CHOICE_SLACK", 1.0)

    def refuse(value: Any) -> Any:
        raise TypeError("no float64 here\nat all")

    monkeypatch.setattr("mmalign.lm.exact.in_double", refuse)
    async with LocalLM(tiny("llama")) as lm:
        choice = await lm.choose(chat("llama", "Is it?"), YES)
        (score,) = await lm.score(chat("llama", "Is it?"), ["A boat."])
    assert isinstance(score, TokenLogps)
    assert sum(choice.probabilities) == pytest.approx(1)
    (record,) = caplog.records
    assert record.getMessage().endswith("fails in float64, so answers may depend on the batch: no float64 here")


async def test_a_fault_in_an_exact_forward_fails_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHOICE_SLACK", 1.0)

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    async with LocalLM(tiny("llama")) as lm:
        with monkeypatch.context() as patch:
            patch.setattr("mmalign.lm.exact.in_double", full)
            with pytest.raises(Exception, match="memory ran out for one request alone"):
                await lm.choose(chat("llama", "Is it?"), YES)
        assert (await lm.choose(chat("llama", "Is it?"), YES)).mass > 0


@torch.inference_mode()
def test_noise_that_is_seen_widens_the_slack_and_much_of_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    exact = Exact("m", torch.nn.Linear(1, 1))
    values = torch.tensor([2.0, -10.0, -torch.inf], dtype=torch.float64)
    exact.compare(values, torch.tensor([2.0, -10.0 + 5e-5, -torch.inf]))
    assert exact.noise == pytest.approx(5e-6, rel=0.1)
    assert not caplog.records
    for _ in range(2):
        exact.compare(values, values + 0.1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "is TF32 on?" in caplog.records[0].getMessage()


@torch.inference_mode()
def test_what_a_model_notes_in_a_forward_is_put_back() -> None:
    class Noting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deltas: Tensor | None = torch.ones(2)
            self.is_ready = False
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.deltas, self.is_ready, self.steps = x + 1, True, x
            return x.float() + torch.zeros(1, dtype=torch.float32) + x.softmax(0, dtype=torch.float32)

    model = Noting()
    before, steps = model.deltas, model.steps
    with in_double(model):
        assert model(torch.ones(1)).dtype == torch.float64
    assert model.deltas is before
    assert model.steps is steps
    assert model.is_ready


def test_a_row_grows_by_text() -> None:
    ids = torch.tensor([[5, 6]])
    inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "mm_token_type_ids": ids * 0 + 1, "pixels": ids[0] * 1.0}
    longer = grown(inputs, [7])
    assert longer["input_ids"].tolist() == [[5, 6, 7]]
    assert longer["attention_mask"].tolist() == [[1, 1, 1]]
    assert longer["mm_token_type_ids"].tolist() == [[1, 1, 0]]
    assert longer["pixels"] is inputs["pixels"]


def test_a_placeholder_that_the_model_wrote_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llava")
    mark = loaded.model.config.image_token_id

    def only_marks(module: Any, args: Any, output: Any) -> None:
        output.logits[..., mark] += 1e3

    loaded.model.register_forward_hook(only_marks)
    monkeypatch.setattr(sampling, "largest", lambda logits: torch.full_like(logits[:, :1], 1e9))
    model = BatchModel(loaded)
    with torch.inference_mode():
        (said,) = model.generate([model.prompt(chat("llava", "Say."))], [Sampling(max_new_tokens=3)], [0])
    assert isinstance(said, Completion)
    assert said.num_tokens == 3
