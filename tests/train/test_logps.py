"""Log-probs of completions equal the plain computation and cost no logits of the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from mmalign.lm.local import LocalLM
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.context import open_context
from mmalign.train.logprobs import head as head_module
from mmalign.train.logprobs.head import Head
from mmalign.train.logprobs.logps import Anchor, completion_logps, completion_states, completion_terms
from tests.models import ALL, READING, tiny
from tests.train.rows import make_rows


def batch_for(name: str, root: Path, count: int = 3) -> PairBatch:
    rows = make_rows(root, count, pictures=0 if name in READING else 1)
    return Collator(Renderer(tiny(name).processor), root, MediaLimits())(rows)


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
    collate = Collator(Renderer(loaded.processor), tmp_path, MediaLimits())
    together = completion_logps(loaded.model, collate(rows)).sum(-1)
    alone = [completion_logps(loaded.model, collate([row])).sum(-1) for row in rows]
    expected = torch.stack(alone, dim=1).flatten()
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
async def test_training_scores_what_the_model_room_scores(name: str, tmp_path: Path) -> None:
    """A pair's log-probs are those that judges and generation see: same tokens, same pixels, same end of turn."""
    rows = make_rows(tmp_path, 3, pictures=0 if name in READING else 1)
    loaded = tiny(name)
    batch = Collator(Renderer(loaded.processor), tmp_path, MediaLimits())(rows)
    found = completion_logps(loaded.model, batch)
    lm = LocalLM(loaded)
    for index, row in enumerate(rows):
        chat = open_context(row.context, tmp_path, MediaLimits(), row.id)
        for side, scored in enumerate(await lm.score(chat, [row.chosen, row.rejected])):
            place = side * len(rows) + index
            assert tuple(batch.inputs["input_ids"][place][batch.completion_mask[place]].tolist()) == scored.tokens
            assert found[place][batch.mask[place]].tolist() == pytest.approx(scored.logps, abs=1e-4)
    await lm.close()


def test_a_model_that_cannot_leave_out_logits_gives_the_same(tmp_path: Path) -> None:
    model, batch = tiny("llama").model, batch_for("llama", tmp_path)

    class Plain(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    batch.inputs.pop("token_type_ids", None)
    torch.testing.assert_close(completion_logps(Plain(), batch), completion_logps(model, batch))


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_forward_that_was_set_on_the_head_itself_is_the_one_that_counts(known: bool, tmp_path: Path) -> None:
    """Some libraries set one; what the layer's class does says nothing about the logits then."""
    model, batch = tiny("llama").model.eval(), batch_for("llama", tmp_path)
    if known:
        completion_logps(model, batch)
    inner = model.lm_head.forward
    model.lm_head.forward = own = lambda hidden: 1.5 * inner(hidden)
    found = completion_logps(model, batch)
    for values, mask, expected in zip(found, batch.mask, plain(model, batch), strict=True):
        assert values[mask].tolist() == pytest.approx(expected, abs=2e-5)
    assert model.lm_head.forward is own


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


# The divergence from the reference -----------------------------------------------------------------------------------


def plain_terms(model: nn.Module, reference: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Log-probs (N, T) and KL(reference || policy) (B, T) from whole logits, nothing left out."""
    ours = model(**batch.inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
    theirs = reference(**batch.inputs, use_cache=False).logits[:, :-1].detach().log_softmax(-1)
    logps = ours.gather(-1, batch.inputs["input_ids"][:, 1:, None]).squeeze(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    found = []
    size = len(batch.ids)
    for values, rows in ((logps, slice(None)), (kl, slice(size))):
        mask = batch.mask[rows]
        tokens = values[rows][batch.completion_mask[rows, 1:]]
        found.append(torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, tokens))
    return found[0], found[1]


def moved(name: str, seed: int = 3) -> nn.Module:
    """The model a few steps on: all weights of the language model a little different."""
    model: nn.Module = tiny(name).model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.get_decoder().parameters():  # type: ignore[operator]
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
        model.lm_head.weight += 0.02 * torch.randn(model.lm_head.weight.shape, generator=generator)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("at_once", [3, 64])
@pytest.mark.parametrize("name", ALL)
def test_divergence_and_its_gradients_are_those_of_whole_logits(
    name: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "NUMBERS", at_once * 2 * 400)
    reference, policy, batch = tiny(name).model, moved(name), batch_for(name, tmp_path)
    policy.requires_grad_(True)
    with torch.no_grad():
        _, states = completion_states(reference, batch)
    anchor = Anchor(states, Head.of(reference))
    draw = torch.Generator().manual_seed(0)
    weights = [torch.rand(batch.mask[rows].shape, generator=draw) for rows in (slice(None), slice(len(batch.ids)))]
    results = []
    for terms in (completion_terms(policy, batch, anchor), plain_terms(policy, reference, batch)):
        policy.zero_grad()
        sum((value * weight).sum() for value, weight in zip(terms, weights, strict=True)).backward()
        gradients = {key: value.grad.clone() for key, value in policy.named_parameters() if value.grad is not None}
        results.append((terms, gradients))
    (found, gradients), (expected, plainly) = results
    assert expected[1].max() > 0.01
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=2e-5, rtol=1e-4)
    assert gradients.keys() == plainly.keys()
    for key, value in plainly.items():
        torch.testing.assert_close(gradients[key], value, atol=1e-5 * max(1, value.abs().max().item()), rtol=1e-3)


def test_no_gradient_reaches_the_reference(tmp_path: Path) -> None:
    model, batch = tiny("llama").model.requires_grad_(True), batch_for("llama", tmp_path)
    _, states = completion_states(model, batch)
    head = Head.of(model).frozen()
    assert head.linear is not model.lm_head
    _, divergence = completion_terms(model, batch, Anchor(states, head))
    assert divergence.abs().max() < 1e-5
    divergence.sum().backward()
    assert all(weight.grad is None for weight in head.linear.parameters())
    assert model.lm_head.weight.grad.abs().max() < 1e-5, "at the reference the KL is at its least"


def test_scaled_and_capped_logits() -> None:
    """Gemma caps, Cohere multiplies and Granite divides what its last layer gives."""
    settings: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    made = [
        Gemma2ForCausalLM(Gemma2Config(**settings, final_logit_softcapping=0.5)),
        CohereForCausalLM(CohereConfig(**settings, logit_scale=0.25)),
        GraniteForCausalLM(GraniteConfig(**settings, logits_scaling=4.0)),
    ]
    ids = torch.arange(1, 9)[None]
    for model in made:
        model.eval()
        head = Head.of(model)
        raw: list[Tensor] = []
        head.linear.register_forward_hook(lambda _module, _inputs, output, raw=raw: raw.append(output))
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        torch.testing.assert_close(head.shaped(raw[0]), logits)
        assert head.gives(raw[0], logits)
        assert not replace(head, scale=1.0, softcap=None).gives(raw[0], logits)
        assert not head.gives(raw[0][..., :-1], logits)
