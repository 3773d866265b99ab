"""One forward, read without logits: for every kind of head what whole logits of the model's own would give."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import TokenTerm
from mmalign.objectives.distributions import token_kl
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.logprobs import head as head_module
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.logps import Wanted, completion_logps, completion_states, completion_terms, read
from tests.models import tiny
from tests.train.rows import make_rows
from tests.train.shapes import RecordShapes

V = 400
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


class Clamped(LlamaForCausalLM):
    """Does something to its logits that nobody knows."""

    def forward(self, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        output.logits = output.logits.clamp(max=0.5)
        return output


class Twice(LlamaForCausalLM):
    """Calls its head more than once, and on something else the last time."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        self.lm_head(torch.zeros(1, 1, 32, dtype=self.dtype))
        return output


def adapted(model: Any, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for names that transformers gave up
        adapter = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **settings))
    assert isinstance(adapter, nn.Module)
    return adapter


MODELS: dict[str, Callable[[], Any]] = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": True})),
    "with a bias": lambda: PhiForCausalLM(PhiConfig(**{key: SIZES[key] for key in SIZES if key != "head_dim"})),
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=0.5)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "adapter": lambda: adapted(MODELS["capped"](), target_modules=["q_proj"]),
    "adapter on the head": lambda: adapted(MODELS["multiplied"](), target_modules=["q_proj", "lm_head"]),
    "copy of the head": lambda: adapted(MODELS["plain"](), target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "clamped": lambda: Clamped(LlamaConfig(**SIZES)),
    "twice": lambda: Twice(LlamaConfig(**SIZES)),
}
FOLLOW = [name for name in MODELS if name not in ("clamped", "twice")]


def made(name: str, *, frozen_head: bool = False, seed: int = 0) -> Any:
    """In float64, and with larger weights than its class starts with; checkpointed activations."""
    torch.manual_seed(seed)
    model = MODELS[name]().double().eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.normal_(0, 0.3)
    if "adapter" not in name and "copy" not in name:
        model.requires_grad_(True)
    if frozen_head:
        model.get_output_embeddings().requires_grad_(False)
    return model


def batch_for(root: Path, *, shares: bool = False) -> PairBatch:
    collate = Collator(Renderer(tiny("llama").processor), root, MediaLimits(), shares=shares, states=True)
    return collate(make_rows(root, 3, pictures=0))


def whole(model: nn.Module, batch: PairBatch) -> Tensor:
    """The model's own logits (M, V) of completion tokens."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits[batch.places.rows, batch.places.columns]


def loss_of(values: Mapping[str, Tensor]) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return sum(
        (values[name] * torch.randn(values[name].shape, generator=draw, dtype=torch.float64)).sum()
        for name in sorted(values)
    )  # type: ignore[return-value]


def gradients(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(values).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(model: nn.Module, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-8, atol=1e-9)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def laid(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


@pytest.mark.parametrize("frozen_head", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", FOLLOW)
def test_log_probs_and_divergence(
    name: str, frozen_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "NUMBERS", 5 * 2 * V)
    model, batch = made(name, frozen_head=frozen_head), batch_for(tmp_path)
    other = made(name, frozen_head=frozen_head, seed=1)
    other.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
    with torch.no_grad():
        theirs = whole(other, batch).log_softmax(-1)
    logps, states = completion_states(other, batch)
    # Where the head does not learn, that of policy and reference is one.
    head = Head.of(model).frozen()
    found = dict(zip(("logps", "kl"), completion_terms(model, batch, Anchor(states, head)), strict=True))
    ours = whole(model, batch).log_softmax(-1)
    labels = batch.places.labels[:, None]
    first = batch.mask[batch.rows_of("chosen")]
    kl = (theirs.exp() * (theirs - ours)).sum(-1)[: int(first.sum())]
    expected = {"logps": laid(ours.gather(-1, labels).squeeze(-1), batch.mask), "kl": laid(kl, first)}
    assert kl.mean() > 1e-3
    torch.testing.assert_close(logps[batch.mask], theirs.gather(-1, labels).squeeze(-1))
    assert_same(model, found, expected)


@pytest.mark.parametrize("name", ["plain", "capped", "adapter on the head", "clamped"])
def test_terms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a teacher that covers two sides, and another side's distributions, which learn."""
    monkeypatch.setattr(head_module, "NUMBERS", 5 * 4 * V)
    model, batch, teacher = made(name), batch_for(tmp_path), made("plain", seed=1).requires_grad_(False)
    rows = make_rows(tmp_path, 2, pictures=0)
    same = [replace(row, rejected=row.chosen, rejected_context=rows[1 - i].context) for i, row in enumerate(rows)]
    batch = Collator(Renderer(tiny("llama").processor), tmp_path, MediaLimits())(same)
    known = name != "clamped"
    inputs = read(teacher, batch, Wanted(logps=False, inputs=batch.sides)).inputs
    sources = {"teacher": Anchor(torch.cat([inputs[side] for side in batch.sides]), Head.of(teacher))} if known else {}
    use = ("teacher",) if known else ()

    def function(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        found = {"own": logits["policy"].log_softmax(-1).square().mean(-1)}
        if "teacher" in logits:
            found["kl"] = token_kl(logits["teacher"], logits["policy"])
        if "rejected" in logits:
            found["apart"] = token_kl(logits["policy"], logits["rejected"])
        return found

    terms = {"rejected": TokenTerm(function, use), "chosen": TokenTerm(function, ("policy", "rejected", *use))}
    read_off = read(model, batch, Wanted(terms=terms, sources=sources))
    found = {f"{side} {name}": value for side in terms for name, value in read_off.terms[side].items()}
    assert read_off.logps is not None
    found["logps"] = read_off.logps
    ours = dict(zip(batch.sides, whole(model, batch).chunk(2), strict=True))
    theirs = dict(zip(batch.sides, whole(teacher, batch).chunk(2), strict=True))
    expected = {
        "logps": laid(torch.cat([*ours.values()]).log_softmax(-1).gather(-1, batch.places.labels[:, None]), batch.mask)
    }
    for side in batch.sides:
        logits = {"policy": ours[side]} | ({"teacher": theirs[side]} if known else {})
        logits |= {"rejected": ours["rejected"]} if side == "chosen" else {}
        named = function(logits, batch.places.labels)
        expected |= {f"{side} {name}": laid(value, batch.mask[batch.rows_of(side)]) for name, value in named.items()}
    assert_same(model, found, expected)


def test_another_side_must_have_the_same_tokens(tmp_path: Path) -> None:
    term = TokenTerm(lambda logits, labels: {"x": logits["policy"].sum(-1)}, ("rejected",))
    with pytest.raises(ValueError, match="the side 'rejected' is read token for token"):
        read(made("plain"), batch_for(tmp_path), Wanted(terms={"chosen": term}))


@pytest.mark.parametrize(
    ("name", "shares"), [("plain", False), ("plain", True), ("adapter", False), ("clamped", False)]
)
def test_states(name: str, shares: bool, tmp_path: Path) -> None:
    """Those at the last token, from a forward that makes no logits at all."""
    model, batch = made(name), batch_for(tmp_path, shares=shares)
    with RecordShapes() as record:
        found = read(model, batch, Wanted(states=True, logps=False))
    assert not {shape for shape in record.shapes if V in shape}
    assert found.logps is None
    assert found.states is not None
    plain = batch_for(tmp_path)
    hidden = model(**plain.inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
    last = plain.inputs["attention_mask"].sum(-1) - 1
    expected = hidden[torch.arange(len(last)), last]
    if shares:  # rotations are made in float32, from other positions in the row
        torch.testing.assert_close(found.states, expected, rtol=1e-5, atol=1e-5)
    else:
        assert_same(model, {"states": found.states}, {"states": expected})
    both = read(model, batch, Wanted(states=True))
    assert both.states is not None
    assert both.logps is not None
    torch.testing.assert_close(both.states, found.states)


@pytest.mark.parametrize("name", ["clamped", "twice"])
def test_a_model_with_logits_of_its_own_keeps_them_and_says_so_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = made(name), batch_for(tmp_path)
    with caplog.at_level(logging.WARNING, "mmalign.train"):
        found, _ = completion_logps(model, batch), completion_logps(model, batch)
    assert [record.message for record in caplog.records] == [
        "train: this model makes its logits in a way of its own, so all of them are kept in memory"
    ]
    ours = whole(model, batch).log_softmax(-1).gather(-1, batch.places.labels[:, None])
    assert_same(model, {"logps": found}, {"logps": laid(ours, batch.mask)})
    with pytest.raises(TrainError, match="does more to its logits than mmalign knows"):
        completion_states(model, batch)
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("frozen_head", [False, True], ids=["trained", "frozen"])
def test_no_tensor_of_the_vocabulary_is_larger_than_a_part(
    frozen_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with activations computed twice, and though the model says its output were logits."""
    monkeypatch.setattr(head_module, "NUMBERS", 4 * 2 * V)
    model, batch = made("plain", frozen_head=frozen_head), batch_for(tmp_path)
    anchor = Anchor(completion_states(made("plain", seed=1), batch)[1], Head.of(made("plain", seed=1)).frozen())
    term = TokenTerm(lambda logits, labels: {"kl": token_kl(logits["policy"], logits["policy"].detach())})
    model.activation_checkpointing_enable()
    model.train()
    for wanted in (Wanted(), Wanted(anchor=anchor), Wanted(logps=False, terms={"chosen": term})):
        with RecordShapes() as record:
            found = read(model, batch, wanted)
            values = [found.logps, found.divergence, *(found.terms.get("chosen") or {}).values()]
            sum(value.sum() for value in values if value is not None).backward()  # type: ignore[union-attr]
        rows = {size for shape in record.shapes if V in shape for size in shape if size != V}
        assert rows - {32}, "something was computed"
        assert max(rows - {32}) <= 4
    assert len(batch.places.labels) > 40


def test_what_is_read_hangs_on_the_models_output(tmp_path: Path) -> None:
    """Wrappers of distributed training bring weights together when the gradient of the output arrives."""
    model, order = made("divided", frozen_head=True), list[str]()

    def note(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            order.append(name)
            getattr(output, "logits", output).register_hook(lambda _gradient: order.append(f"gradient of {name}"))

        return hook

    model.register_forward_hook(note("model"))
    model.lm_head.register_forward_hook(note("head"))
    model.model.norm.register_forward_hook(note("states"))
    completion_logps(model, batch_for(tmp_path)).sum().backward()
    assert order[:3] == ["states", "head", "model"]
    assert order[3:] == ["gradient of model", "gradient of head", "gradient of states"]
