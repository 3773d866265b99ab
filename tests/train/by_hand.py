"""What an objective is given, computed the plain way: every answer alone in a forward of transformers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import Completions, Distributional, LossInputs, LossOutput, Need, Objective, Remembering
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, laid_out, shape_of
from mmalign.train.data.context import open_context
from mmalign.train.trainer import PreferenceTrainer


@dataclass(frozen=True)
class Told:
    """One answer: logits (n, V) before its n tokens, the tokens, the states before its first one and at its last."""

    logits: Tensor
    labels: Tensor
    first: Tensor
    last: Tensor

    @property
    def logps(self) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, self.labels[:, None]).squeeze(-1)


@torch.no_grad()
def told(model: Any, loaded: Loaded, row: PairRow, answer: AnswerRow, root: Path) -> Told:
    """What a plain forward says of an answer in its context."""
    chat = open_context(row.context if answer.context is None else answer.context, root, MediaLimits(), row.id)
    prompt, text = loaded.renderer.prompt(chat), loaded.renderer.answer(chat, answer.text)
    inputs = loaded.renderer.encode([prompt + text], [chat.media])
    count = loaded.renderer.answer_length(prompt, text)
    output = model(**inputs, output_hidden_states=True)
    logits, states = output.logits[0].float(), output.hidden_states[-1][0]
    return Told(logits[-count - 1 : -1], inputs["input_ids"][0, -count:], states[-count - 1], states[-1])


@dataclass
class ByHand:
    """An objective that compares what the trainer gives it with what is computed by hand, all pairs in one step.

    `others` are other models by name; `trainer` is set once there is one.
    """

    inner: Objective
    loaded: Loaded
    rows: Sequence[PairRow]
    root: Path
    others: Mapping[str, Any]
    steps: int
    trainer: PreferenceTrainer | None = None
    outputs: list[LossOutput] = field(default_factory=list)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.inner, Remembering) and "memory" in self.inner.needs:
            self.memory = self.inner.start_memory()

    def __repr__(self) -> str:
        return repr(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def needs(self) -> frozenset[Need]:
        return self.inner.needs

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        order = [round((1 - float(p)) * 10) for p in inputs.p]
        expected = self.expected([self.rows[index] for index in order])
        compare(inputs, expected, self.needs)
        output = self.inner(inputs)
        torch.testing.assert_close(output.loss.detach(), self.inner(expected).loss.detach(), rtol=1e-3, atol=1e-4)
        if isinstance(self.inner, Remembering) and self.memory:
            self.memory = self.inner.remember(self.memory, self.inner(expected).seen)
        self.outputs.append(output)
        return output

    def expected(self, rows: Sequence[PairRow]) -> LossInputs:
        """What the objective is to be given of these rows."""
        needs = self.inner.needs
        named = [need.partition(":")[2] for need in needs if need.startswith("side:")]
        sides = [side for side in ("chosen", "rejected") if side in needs] + named
        values = {need.partition(":")[2] for need in needs if need.startswith("value:")}
        return LossInputs(
            sides={side: self.side(side, rows) for side in sides},
            p=torch.tensor([row.p for row in rows]),
            values={name: numbers([row.value(name) for row in rows]) for name in values},
            memory=self.memory,
            progress=len(self.outputs) / self.steps,
        )

    def side(self, side: str, rows: Sequence[PairRow]) -> Completions:
        assert self.trainer is not None
        model, needs = self.trainer.model, self.inner.needs
        shape = shape_of([row.side(side) for row in rows])
        places = [(row, answer) for row in rows for answer in laid_out(row.side(side), shape)]
        policy = self.read(model, places)
        with _without_adapter(model):
            start = self.read(model, places)
        width = max(0 if one is None else len(one.labels) for one in policy)

        def laid(values: Sequence[Tensor | None]) -> Tensor:
            rows_of = [torch.zeros(width) if one is None else pad(one, (0, width - len(one))) for one in values]
            return torch.stack(rows_of).view(len(rows), *shape, width)

        def over(first: Sequence[Told | None]) -> Tensor:
            return laid([None if one is None else one.logps for one in first])

        wanted = f"reference:{side}" if side not in ("chosen", "rejected") else "reference"
        tokens = {"old_logps": over(start)} if "tokens:old_logps" in needs else {}
        if "tokens:reward" in needs:
            tokens["reward"] = over(self.read(self.others["reward"], places)) - over(start)
        mask = laid([None if one is None else torch.ones(len(one.labels)) for one in policy]).bool()
        states = {end: self.states(policy, end).view(len(rows), *shape, -1) for end in ("first", "last")}
        found = Completions(
            token_logps=over(policy),
            mask=mask,
            changed=self.changed(side, rows, mask),
            reference_token_logps=over(start) if wanted in needs else None,
            token_divergence=laid([_kl(one, other) for one, other in zip(start, policy, strict=True)]),
            token_values=tokens,
            terms={name: laid(value) for name, value in self.terms(side, places, policy, rows).items()},
            state=states["last"],
        )
        return self.scored(found, states["first"], rows)

    def changed(self, side: str, rows: Sequence[PairRow], mask: Tensor) -> Tensor | None:
        """Tokens in the spans, which are at the beginning of these texts."""
        if "changed" not in self.inner.needs:
            return None
        found = torch.zeros_like(mask)
        for place, row in enumerate(rows):
            text, ((_, end),) = (
                (row.chosen, row.chosen_spans) if side == "chosen" else (row.rejected, row.rejected_spans)
            )
            offsets = self.loaded.renderer.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            for token, (start, _) in enumerate(offsets["offset_mapping"]):
                found[place, token] = start < end
        return found

    def read(self, model: Any, places: Sequence[tuple[PairRow, AnswerRow | None]]) -> list[Told | None]:
        model.eval()
        return [None if answer is None else told(model, self.loaded, row, answer, self.root) for row, answer in places]

    def states(self, policy: Sequence[Told | None], end: str) -> Tensor:
        some = next(one for one in policy if one is not None)
        return torch.stack([torch.zeros_like(some.last) if one is None else getattr(one, end) for one in policy])

    def terms(
        self, side: str, places: Sequence[Any], policy: Sequence[Told | None], rows: Sequence[PairRow]
    ) -> dict[str, list[Tensor | None]]:
        term = self.inner.token_terms.get(side) if isinstance(self.inner, Distributional) else None
        if term is None:
            return {}
        assert self.trainer is not None
        sources = {"policy": policy}
        for name in term.sources:
            own = name in self.rows[0].sides
            other = [(row, row.side(name)) for row in rows] if own else places
            if name == "reference":
                with _without_adapter(self.trainer.model):
                    sources[name] = self.read(self.trainer.model, places)
            else:
                sources[name] = self.read(self.trainer.model if own else self.others[name], other)
        found: dict[str, list[Tensor | None]] = {}
        for index, one in enumerate(policy):
            assert one is not None
            logits = {name: read[index].logits for name, read in sources.items()}  # type: ignore[union-attr]
            for name, value in term.function(logits, one.labels).items():
                found.setdefault(name, []).append(value)
        return found

    def scored(self, side: Completions, prompts: Tensor, rows: Sequence[PairRow]) -> Completions:
        """With what the head says, where one is trained."""
        assert self.trainer is not None
        if not (names := [need.partition(":")[2] for need in self.inner.needs if need.startswith("head:")]):
            return side
        head, state = self.trainer.reward_head, side.states
        assert head is not None
        more = []
        if names == ["gated"]:
            more = [prompts]
        elif names == ["ideal_point"]:
            more = [torch.tensor([int(row.values["user"]) for row in rows])]  # type: ignore[arg-type]
        with torch.no_grad():
            return replace(side, score=head.module(state, *more))


def compare(found: LossInputs, expected: LossInputs, needs: frozenset[Need]) -> None:
    """Every tensor that an objective can read is the one that was computed by hand."""

    def same(name: str, one: Tensor | None, other: Tensor | None) -> None:
        assert one is not None, name
        assert other is not None, name
        torch.testing.assert_close(
            one.detach().float(),
            other.float(),
            rtol=2e-4,
            atol=2e-4,
            equal_nan=True,
            msg=lambda text: f"{name}: {text}",
        )

    same("p", found.p, expected.p)
    assert found.progress == expected.progress
    for name, value in expected.values.items():
        same(f"value:{name}", found.value(name), value)
    for name, value in expected.memory.items():
        same(f"memory of {name}", found.recalled(name), value)
    for name, by_hand in expected.sides.items():
        side, width = found.side(name), by_hand.mask.shape[-1]
        assert torch.equal(side.mask[..., :width], by_hand.mask), name
        assert not side.mask[..., width:].any()
        is_scored = any(need.startswith("head:") for need in needs)
        if is_scored:
            same(f"states of {name}", side.states, by_hand.states)
            same(f"scores of {name}", side.scores, by_hand.scores)
        if not is_scored or "reference" in needs:
            same(f"log-probs of {name}", side.token_logps[..., :width], by_hand.token_logps)
        if by_hand.reference_token_logps is not None:
            same(f"reference of {name}", side.reference[..., :width], by_hand.reference)
        if by_hand.changed is not None:
            assert torch.equal(side.changed[..., :width], by_hand.changed), name  # type: ignore[index]
        if "divergence" in needs and name == "chosen":
            same("divergence", side.divergence[..., :width], by_hand.divergence)
        for key, value in by_hand.token_values.items():
            same(f"{key} of {name}", side.tokens(key)[..., :width] * by_hand.mask, value)
        for key, value in by_hand.terms.items():
            same(f"{key} of {name}", side.term(key)[..., :width], value)


def numbers(values: Sequence[Any]) -> Tensor:
    shape = shape_of(values)
    flat = [torch.nan if number is None else number for value in values for number in laid_out(value, shape)]
    return torch.tensor(flat, dtype=torch.float32).view(len(values), *shape)


def _kl(start: Told | None, policy: Told | None) -> Tensor | None:
    if start is None or policy is None:
        return None
    ours, theirs = start.logits.log_softmax(-1), policy.logits.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def _without_adapter(model: Any) -> AbstractContextManager[Any]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
