"""From pair rows to tensors: contexts with their media and the answers to them, padded on the right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import SampleError, TrainError
from mmalign.lm.prefix import Branches, Places, pack_texts
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.context import open_context
from mmalign.types import Chat, Media


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Some pairs with S sides as a model takes them, N = S x B answers: the first side of all B pairs, then the next.

    `inputs` are the forward's arguments. Each of its rows is a context with one answer, in the order of N, or, where
    there are `branches`, a context with all answers to it (`lm.prefix`). `places` are where the answers' tokens are
    predicted, end of turn included, answer by answer. `lengths` (S, B) are the tokens of context and answer.

    `mask` (N, T) bool is True on answer tokens, moved to the left; `changed` (N, T) bool marks those in spans that
    differ from the other side. `p` and `weight` (B,) come from the rows.
    """

    ids: tuple[str, ...]
    sides: tuple[str, ...]
    inputs: dict[str, Tensor]
    places: Places
    lengths: Tensor
    mask: Tensor
    changed: Tensor
    p: Tensor
    weight: Tensor
    branches: Branches | None = None

    @property
    def completion_mask(self) -> Tensor:
        """Which tokens of `inputs` are an answer's, (N, L) bool; only for rows of one answer each."""
        assert self.branches is None
        found = torch.zeros_like(self.inputs["input_ids"], dtype=torch.bool)
        found[self.places.rows, self.places.columns + 1] = True
        return found

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device) for name in ("places", "mask", "changed", "p", "weight")
        }
        branches = None if self.branches is None else self.branches.to(device)
        return replace(
            self, inputs={key: value.to(device) for key, value in self.inputs.items()}, branches=branches, **moved
        )


@dataclass(frozen=True)
class Collator:
    """Opens the media of pair rows, renders contexts and answers, and makes `PairBatch`es.

    `data_root` is the folder that media paths are relative to; `limits` are those the pairs were generated under.
    With `shares` all answers to one context stand in one row, else each in its own.
    """

    renderer: Renderer
    data_root: Path
    limits: MediaLimits
    sides: tuple[str, ...] = ("chosen", "rejected")
    shares: bool = False

    def __call__(self, rows: Sequence[PairRow]) -> PairBatch:
        """Tensors of `rows`.

        Raises MediaError for media that cannot be opened or are not what the pair was made from, and TrainError,
        naming the pair, for an answer that cannot be rendered or a context whose media the template left out.
        """
        opened = [self._contexts(row) for row in rows]
        sequences = [
            self._sequence(contexts[index], row, side)
            for index, side in enumerate(self.sides)
            for row, contexts in zip(rows, opened, strict=True)
        ]
        forward = self._shared(sequences) if self.shares else self._separate(sequences)
        return PairBatch(
            ids=tuple(row.id for row in rows),
            sides=self.sides,
            p=torch.tensor([row.p for row in rows], dtype=torch.float32),
            weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
            **forward,
            **_masks([sequence.changed for sequence in sequences]),
        )

    def _separate(self, sequences: Sequence[_Sequence]) -> dict[str, Any]:
        """Every sequence in a row of its own."""
        inputs = self._encoded(sequences, [sequence.prompt + sequence.answer for sequence in sequences])
        lengths = inputs["attention_mask"].sum(-1)
        places = [
            (row, column)
            for row, (sequence, end) in enumerate(zip(sequences, lengths.tolist(), strict=True))
            for column in range(end - len(sequence.changed) - 1, end - 1)
        ]
        rows, columns = torch.tensor(places).unbind(-1)
        found = Places(rows, columns, inputs["input_ids"][rows, columns + 1])
        return {"inputs": inputs, "places": found, "lengths": lengths.view(len(self.sides), -1)}

    def _shared(self, sequences: Sequence[_Sequence]) -> dict[str, Any]:
        """Sequences with the same context in one row, which is encoded without an answer."""
        contexts = list(dict.fromkeys(sequence.context for sequence in sequences))
        prompts = [contexts.index(sequence.context) for sequence in sequences]
        firsts = [sequences[prompts.index(row)] for row in range(len(contexts))]
        inputs = self._encoded(firsts, [sequence.prompt for sequence in firsts])
        texts = [sequence.answer for sequence in sequences]
        packed = pack_texts(self.renderer, inputs, [sequence.prompt for sequence in firsts], prompts, texts)
        return {
            "inputs": packed.inputs,
            "branches": packed.branches,
            "places": packed.places,
            "lengths": packed.lengths.view(len(self.sides), -1),
        }

    def _contexts(self, row: PairRow) -> list[tuple[str, Chat]]:
        """The context of each side, by a name that tells it from others, opened once where both have the same."""
        opened: dict[str, Chat] = {}
        found = []
        for side in self.sides:
            other = row.rejected_context if side == "rejected" else None
            context = row.context if other is None else other
            name = json.dumps(context, sort_keys=True)
            if name not in opened:
                opened[name] = open_context(context, self.data_root, self.limits, row.id)
            found.append((name, opened[name]))
        return found

    def _sequence(self, context: tuple[str, Chat], row: PairRow, side: str) -> _Sequence:
        name, chat = context
        text, spans = (row.chosen, row.chosen_spans) if side == "chosen" else (row.rejected, row.rejected_spans)
        try:
            prompt, answer = self.renderer.prompt(chat), self.renderer.answer(chat, text)
        except SampleError as error:
            raise TrainError(f"pair {row.id}, {side}: {error}") from error
        length = self.renderer.answer_length(prompt, answer)
        if not length:
            raise TrainError(f"pair {row.id}, {side}: the chat template adds no token for the answer {text!r:.60}")
        changed = [False] * length
        if spans:
            begin = answer.find(text.strip())  # many templates leave out white space around an answer
            if begin < 0:
                raise TrainError(f"pair {row.id}, {side}: the chat template changes the text, its spans have no place")
            shift = len(prompt) + begin - (len(text) - len(text.lstrip()))
            whole = self.renderer.tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
            offsets = whole["offset_mapping"][-length:]
            changed = [any(lo - shift < end and hi - shift > first for first, end in spans) for lo, hi in offsets]
        return _Sequence(row.id, name, prompt, answer, chat.media, changed)

    def _encoded(self, sequences: Sequence[_Sequence], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of texts with the media of sequences, one each."""
        try:
            inputs = dict(self.renderer.encode(texts, [sequence.media for sequence in sequences], padding_side="right"))
        except ValueError as error:
            # What processors raise when text and media do not fit each other.
            named = ", ".join(dict.fromkeys(self._at_fault(sequences) or [sequence.pair for sequence in sequences]))
            raise TrainError(f"pair {named}: the processor refuses media and text: {error}") from error
        self._check_media(inputs["input_ids"], sequences)
        return inputs

    def _at_fault(self, sequences: Sequence[_Sequence]) -> list[str]:
        """Pairs that the processor refuses alone, too."""
        refused = []
        for sequence in sequences:
            try:
                self.renderer.encode([sequence.prompt + sequence.answer], [sequence.media])
            except ValueError:
                refused.append(sequence.pair)
        return refused

    def _check_media(self, input_ids: Tensor, sequences: Sequence[_Sequence]) -> None:
        """Every context with media must have placeholders; a silent loss of them would train on text alone."""
        counts = torch.isin(input_ids, torch.tensor(self.renderer.media_ids)).sum(-1).tolist()
        for sequence, count in zip(sequences, counts, strict=True):
            if sequence.media and not count:
                raise TrainError(
                    f"pair {sequence.pair}: its context holds {len(sequence.media)} media but the chat "
                    "template left no place for them; use a model and template that take media"
                )


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One side of one pair, rendered; `changed` tells for each answer token whether it lies in a changed span."""

    pair: str
    context: str
    prompt: str
    answer: str
    media: tuple[Media, ...]
    changed: list[bool]


def _masks(changed: Sequence[list[bool]]) -> dict[str, Any]:
    """`mask` and `changed` (N, T) of answers."""
    mask = torch.zeros(len(changed), max(map(len, changed)), dtype=torch.bool)
    marked = torch.zeros_like(mask)
    for row, flags in enumerate(changed):
        mask[row, : len(flags)] = True
        marked[row, : len(flags)] = torch.tensor(flags)
    return {"mask": mask, "changed": marked}
