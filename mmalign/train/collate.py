"""From pair rows to tensors: the context with its media, then each side's answer, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmalign.errors import SampleError, TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.context import open_context
from mmalign.types import Chat, Media


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Some pairs as a model takes them.

    `inputs` are the forward's arguments with N = sides x B rows of L tokens: the first side of every pair, then the
    next side. `completion_mask` (N, L) bool is True on answer tokens, end of turn included, never on prompt, media or
    padding. `mask` (N, T) bool is the same with the answers moved to the left; `changed` (N, T) bool marks the answer
    tokens in spans that differ from the other side. `p` and `weight` (B,) come from the rows.
    """

    ids: tuple[str, ...]
    sides: tuple[str, ...]
    inputs: dict[str, Tensor]
    completion_mask: Tensor
    mask: Tensor
    changed: Tensor
    p: Tensor
    weight: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of every sequence without padding, (sides, B)."""
        return self.inputs["attention_mask"].sum(-1).view(len(self.sides), -1)

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("completion_mask", "mask", "changed", "p", "weight")}
        return replace(self, inputs={key: value.to(device) for key, value in self.inputs.items()}, **moved)


@dataclass(frozen=True)
class Collator:
    """Opens the media of pair rows, renders contexts and answers, and makes `PairBatch`es.

    `data_root` is the folder that media paths are relative to; `limits` are those the pairs were generated under.
    """

    renderer: Renderer
    data_root: Path
    limits: MediaLimits
    sides: tuple[str, ...] = ("chosen", "rejected")

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
        inputs = self._encoded(sequences)
        self._check_media(inputs["input_ids"], sequences)
        return PairBatch(
            ids=tuple(row.id for row in rows),
            sides=self.sides,
            inputs=inputs,
            p=torch.tensor([row.p for row in rows], dtype=torch.float32),
            weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
            **_masks(inputs["attention_mask"], [sequence.changed for sequence in sequences]),
        )

    def _contexts(self, row: PairRow) -> list[Chat]:
        """The context of each side, opened once where both have the same."""
        shared = open_context(row.context, self.data_root, self.limits, row.id)
        other = row.rejected_context
        if other is None or "rejected" not in self.sides:
            return [shared for _ in self.sides]
        rejected = open_context(other, self.data_root, self.limits, row.id)
        return [rejected if side == "rejected" else shared for side in self.sides]

    def _sequence(self, chat: Chat, row: PairRow, side: str) -> _Sequence:
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
        return _Sequence(row.id, prompt, answer, chat.media, changed)

    def _encoded(self, sequences: Sequence[_Sequence]) -> dict[str, Tensor]:
        texts = [sequence.prompt + sequence.answer for sequence in sequences]
        try:
            return dict(self.renderer.encode(texts, [sequence.media for sequence in sequences], padding_side="right"))
        except ValueError as error:
            # What processors raise when text and media do not fit each other.
            named = ", ".join(dict.fromkeys(self._at_fault(sequences) or [sequence.pair for sequence in sequences]))
            raise TrainError(f"pair {named}: the processor refuses media and text: {error}") from error

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
    prompt: str
    answer: str
    media: tuple[Media, ...]
    changed: list[bool]


def _masks(attention_mask: Tensor, changed: Sequence[list[bool]]) -> dict[str, Tensor]:
    """`completion_mask` (N, L), `mask` and `changed` (N, T) of sequences padded on the right."""
    completion = torch.zeros(attention_mask.shape, dtype=torch.bool)
    mask = torch.zeros(len(changed), max(map(len, changed)), dtype=torch.bool)
    marked = torch.zeros_like(mask)
    for row, (flags, end) in enumerate(zip(changed, attention_mask.sum(-1).tolist(), strict=True)):
        completion[row, end - len(flags) : end] = True
        mask[row, : len(flags)] = True
        marked[row, : len(flags)] = torch.tensor(flags)
    return {"completion_mask": completion, "mask": mask, "changed": marked}
