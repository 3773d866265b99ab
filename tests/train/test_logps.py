"""Log-probs of completions equal the plain computation and cost no logits of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.lm.local import LocalLM
from mmalign.lm.render import Renderer
from mmalign.media.image import PictureLimits
from mmalign.train import logps
from mmalign.train.collate import Collator, PairBatch
from mmalign.train.context import open_context
from mmalign.train.logps import completion_logps
from tests.models import ALL, READING, SEEING, tiny
from tests.train.rows import make_rows


def batch_for(name: str, root: Path, count: int = 3) -> PairBatch:
    rows = make_rows(root, count, pictures=0 if name in READING else 1)
    return Collator(Renderer(tiny(name).processor), root, PictureLimits())(rows)


def plain(model: nn.Module, batch: PairBatch) -> list[list[float]]:
    """Log-softmax over everything, in float64, one sequence at a time."""
    logits = model(**batch.inputs, use_cache=False).logits.double().log_softmax(-1)
    found = []
    for row, mask in enumerate(batch.completion_mask):
        places = mask.nonzero().squeeze(-1).tolist()
        found.append([logits[row, place - 1, batch.inputs["input_ids"][row, place]].item() for place in places])
    return found


@pytest.mark.parametrize("name", ALL)
def test_equal_to_a_plain_log_softmax(name: str, tmp_path: Path) -> None:
    model, batch = tiny(name).model, batch_for(name, tmp_path)
    found = completion_logps(model, batch)
    assert found.dtype == torch.float32
    assert found.shape == batch.mask.shape
    assert not found[~batch.mask].any()
    for values, mask, expected in zip(found, batch.mask, plain(model, batch), strict=True):
        assert values[mask].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_batching_and_padding_change_nothing(name: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 3, pictures=0 if name in READING else 1)
    loaded = tiny(name)
    collate = Collator(Renderer(loaded.processor), tmp_path, PictureLimits())
    together = completion_logps(loaded.model, collate(rows)).sum(-1)
    alone = [completion_logps(loaded.model, collate([row])).sum(-1) for row in rows]
    expected = torch.stack(alone, dim=1).flatten()
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
async def test_training_scores_what_the_model_room_scores(name: str, tmp_path: Path) -> None:
    """A pair's log-probs are those that judges and generation see: same tokens, same pixels, same end of turn."""
    rows = make_rows(tmp_path, 3, pictures=0 if name in READING else 1)
    loaded = tiny(name)
    batch = Collator(Renderer(loaded.processor), tmp_path, PictureLimits())(rows)
    found = completion_logps(loaded.model, batch)
    lm = LocalLM(loaded)
    for index, row in enumerate(rows):
        chat = open_context(row.context, tmp_path, PictureLimits(), row.id)
        for side, scored in enumerate(await lm.score(chat, [row.chosen, row.rejected])):
            place = side * len(rows) + index
            assert tuple(batch.inputs["input_ids"][place][batch.completion_mask[place]].tolist()) == scored.tokens
            assert found[place][batch.mask[place]].tolist() == pytest.approx(scored.logps, abs=1e-4)
    await lm.close()


@pytest.mark.parametrize("name", SEEING)
def test_the_head_runs_on_completion_positions_only(name: str, tmp_path: Path) -> None:
    model, batch = tiny(name).model, batch_for(name, tmp_path)
    seen = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    completion_logps(model, batch)
    columns = batch.completion_mask.any(0).nonzero()
    assert seen == [int(columns[-1] - columns[0]) + 1]
    assert seen[0] < batch.inputs["input_ids"].shape[1] - 5


def test_a_model_that_cannot_leave_out_logits_gives_the_same(tmp_path: Path) -> None:
    model, batch = tiny("llama").model, batch_for("llama", tmp_path)

    class Plain(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    batch.inputs.pop("token_type_ids", None)
    torch.testing.assert_close(completion_logps(Plain(), batch), completion_logps(model, batch))


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama").model, batch_for("llama", tmp_path)
    expected = completion_logps(model, batch)
    monkeypatch.setattr(logps, "CHUNK", 3)
    torch.testing.assert_close(completion_logps(model, batch), expected)


def test_gradients_are_those_of_the_plain_computation(tmp_path: Path) -> None:
    model, batch = tiny("qwen3-vl").model.double(), batch_for("qwen3-vl", tmp_path)
    model.lm_head.weight.requires_grad_()
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].double()
    completion_logps(model, batch).sum().backward()
    found = model.lm_head.weight.grad.clone()
    model.lm_head.weight.grad = None
    logits = model(**batch.inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
    chosen = logits.gather(-1, batch.inputs["input_ids"][:, 1:, None]).squeeze(-1)
    chosen[batch.completion_mask[:, 1:]].sum().backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad, atol=1e-5, rtol=1e-5)
