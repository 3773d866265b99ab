"""What is computed in float64 hangs on nothing that was computed before, and leaves nothing behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmalign.lm import batch
from mmalign.lm.batch import BatchModel
from mmalign.lm.exact import Exact, as_usual, in_double
from mmalign.lm.stable import FORBIDDEN, SLACK, is_settled, largest
from mmalign.types import Chat, Message, TokenLogps
from tests.models import picture, tiny

YES = ([0], [1])


def asks(model: BatchModel, name: str = "llava") -> Any:
    shown = () if name == "llama" else (picture(1),)
    return model.prompt(Chat((Message("user", (*shown, "Is it?")),)))


@torch.inference_mode()
def test_all_verbs_are_shown_the_same_pixels() -> None:
    """Computed in float64, normalized pixels would differ in the last bits: scores would be those of other pictures."""
    loaded = tiny("llava")
    loaded.processor.image_processor.image_mean = [0.48145466, 0.4578275, 0.40821073]
    seen: list[Tensor] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    model = BatchModel(loaded)
    prompt = asks(model)
    model.score([prompt], ["A boat."])
    model.next_logits([prompt])
    scored, chosen = seen
    assert scored.dtype == torch.float64
    assert torch.equal(scored, chosen.double())


@torch.inference_mode()
def test_a_processor_computes_as_usual_inside() -> None:
    with in_double(torch.nn.Linear(1, 1)), as_usual():
        pixels = torch.ones(2, dtype=torch.uint8).to(torch.float32) * torch.tensor([0.1, 0.2])
        assert pixels.dtype == torch.float32
    with in_double(torch.nn.Linear(1, 1)):
        with as_usual():
            pass
        assert torch.ones(1).dtype == torch.float64


@torch.inference_mode()
def test_other_threads_compute_as_usual() -> None:
    """Training beside it, or what opens media."""
    with ThreadPoolExecutor(1) as other, in_double(torch.nn.Linear(1, 1)):
        assert other.submit(lambda: (torch.ones(1) + 1).softmax(0, dtype=torch.float32).dtype).result() == torch.float32


@torch.inference_mode()
def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model: Any = torch.nn.Linear(1, 1)
    model.register_buffer("steps", torch.zeros(1))

    def refuse() -> None:
        with in_double(model):
            model.steps = torch.ones(1)
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refuse()
    assert model.steps.item() == 0
    assert torch.ones(1).dtype == torch.float32
    assert model(torch.ones(1)).dtype == torch.float32


@torch.inference_mode()
def test_nothing_that_a_forward_noted_is_left_behind() -> None:
    class Noting(torch.nn.Module):
        """As rotary embeddings do that grow with the longest row."""

        def __init__(self) -> None:
            super().__init__()
            self.longest = 8
            self.deltas: Tensor | None = torch.ones(2)
            self.register_buffer("steps", torch.zeros(1))
            self.is_ready = False

        def forward(self, x: Tensor) -> Tensor:
            self.longest, self.deltas, self.is_ready = 99, None, True
            self.register_buffer("steps", x * 2)
            self.register_buffer("long_steps", x * 3)
            self.kept = x * 4
            return x

    model = Noting()
    deltas, steps = model.deltas, model.steps
    for _ in range(2):
        with in_double(model):
            model(torch.ones(1))
        assert model.longest == 8
        assert model.deltas is deltas
        assert model.steps is steps
        assert not hasattr(model, "long_steps")
        assert not hasattr(model, "kept")
        assert model.is_ready


@torch.inference_mode()
def test_the_least_number_of_a_type_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Chameleon forbids tokens so. In float64 it is another number; all rows would be computed again for ever."""
    exact = Exact("m", torch.nn.Linear(1, 1))
    values = torch.tensor([2.0, -10.0, torch.finfo(torch.float64).min], dtype=torch.float64)
    exact.compare(values, torch.tensor([2.0, -10.0 + 1e-5, torch.finfo(torch.float32).min]))
    assert 0 < exact.noise < 1e-5
    assert not caplog.records


@torch.inference_mode()
def test_a_models_first_choice_shows_how_large_its_noise_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHOICE_SLACK", 0.0)
    model = BatchModel(tiny("llama"))
    asked: list[int] = []
    real = model._exact_next

    def counted(*given: Any) -> Any:
        asked.append(1)
        return real(*given)

    monkeypatch.setattr(model, "_exact_next", counted)
    prompt = asks(model, "llama")
    (logits,) = model.next_logits([prompt])
    first = model.choice(prompt, logits, YES)
    assert len(asked) == 1
    assert model._exact is not None
    assert model._exact.noise > 0
    assert model.choice(prompt, logits, YES) == first
    assert len(asked) == 1


@torch.inference_mode()
def test_prompts_are_shared_only_where_exact_scores_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is off by less than float32 rounding would still show, as whether prompts are shared hangs on the batch."""
    model = BatchModel(tiny("llama"))
    real = model._score_shared

    def off(*given: Any) -> list[TokenLogps]:
        return [TokenLogps(tuple(logp * (1 + 1e-6) for logp in score.logps), score.tokens) for score in real(*given)]

    monkeypatch.setattr(model, "_score_shared", off)
    prompt = asks(model, "llama")
    together = model.score([prompt, prompt], ["A boat.", "A fish."])
    assert model.score([prompt, prompt], ["A boat.", "A fish."]) == together
    assert list(model._shares.values()) == [False]
    assert "computed once for each answer" in caplog.text


@torch.inference_mode()
def test_exact_scores_share_their_prompt() -> None:
    model = BatchModel(tiny("llama"))
    prompt = asks(model, "llama")
    model.score([prompt, prompt], ["A boat.", "A fish."])
    assert list(model._shares.values()) == [True]


numbers = st.one_of(st.floats(-100, 100), st.sampled_from([-torch.inf, torch.finfo(torch.float32).min, FORBIDDEN]))


@given(rows=st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_largest_logit_is_that_of_tokens_that_may_be_written(rows: list[list[float]]) -> None:
    found = largest(torch.tensor(rows, dtype=torch.float64))[:, 0].tolist()
    assert found == [max([abs(value) for value in row if value >= FORBIDDEN], default=0) for row in rows]


def test_a_row_of_no_numbers_is_open_and_hides_no_other() -> None:
    rows = torch.tensor([[torch.nan, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    slack = torch.full((3, 1), SLACK)
    assert is_settled(rows, 0.0, slack, [0], None).tolist() == [False, False, True]
