"""From pair rows to tensors: contexts with their media and the answers to them, padded on the right."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import SampleError, TrainError
from mmalign.lm.memory import is_out_of_memory
from mmalign.lm.prefix import Branches, Places, pack_texts
from mmalign.lm.render import Renderer
from mmalign.lm.vision import Features
from mmalign.media.read import MediaLimits
from mmalign.objectives.needs import RAGGED, axes
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, ValueRow, laid_out, shape_of
from mmalign.train.cache.encoded import ContextEncoder, Encoded, batched
from mmalign.train.data.context import open_context, outlined_context
from mmalign.types import Chat, Media, Picture

_SMALLER_CLIPS = "data.num_frames or data.max_frame_side"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Some pairs with S sides as a model takes them, N places for answers: all B pairs' of one side, then of the next.

    `shapes` says of each side what its places of one pair are: () is one answer, (K,) a list of them, pair after pair.
    A place that a pair has no answer for is a row of `mask` without a token, and nothing else knows of it.

    `inputs` are the forward's arguments. Each of its rows is a context with one answer, in the order of N, or, where
    there are `branches`, a context with all answers to it (`lm.prefix`). `places` are where the answers' tokens are
    predicted, end of turn included, answer by answer. `lengths` (S, B) are the tokens of context and answer, of the
    longest where there are several.

    `mask` (N, T) bool is True on answer tokens, moved to the left; `changed` (N, T) bool marks those in spans that
    differ from the other side. `p` and `weight` (B,) come from the rows, and so do `values`, B first, NaN for a number
    that is not known and 0 for one that belongs to a place without an answer.

    Where media were seen before, `features` go into the forward beside `inputs`, which then hold no pixels. `last` are
    the places of each answer's last token, where rows are packed and it was asked for.
    """

    ids: tuple[str, ...]
    sides: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: dict[str, Tensor]
    places: Places
    lengths: Tensor
    mask: Tensor
    changed: Tensor
    p: Tensor
    weight: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    branches: Branches | None = None
    features: Features | None = None
    last: Places | None = None

    def rows_of(self, side: str) -> slice:
        """Which of the N places are a side's. Raises ValueError for a side that is not among them."""
        index = self.sides.index(side)
        counts = [len(self.ids) * math.prod(shape) for shape in self.shapes]
        return slice(sum(counts[:index]), sum(counts[: index + 1]))

    def laid(self, side: str, values: Tensor) -> Tensor:
        """What belongs to a side of `values` (N, ...), pair by pair: (B, ...), or (B, K, ...) for a list."""
        found = values[self.rows_of(side)]
        return found.view(len(self.ids), *self.shapes[self.sides.index(side)], *values.shape[1:])

    def counts(self) -> Tensor:
        """Tokens (S, B) of the pairs' answers, all answers of a list together."""
        return torch.stack([self.laid(side, self.mask).flatten(1).sum(-1) for side in self.sides])

    @property
    def completion_mask(self) -> Tensor:
        """Which tokens of `inputs` are an answer's, (rows, L) bool; only for rows of one answer each."""
        assert self.branches is None
        found = torch.zeros_like(self.inputs["input_ids"], dtype=torch.bool)
        found[self.places.rows, self.places.columns + 1] = True
        return found

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device) for name in ("places", "mask", "changed", "p", "weight")
        }
        moved["values"] = {name: value.to(device) for name, value in self.values.items()}
        for name in ("branches", "features", "last"):
            if (held := getattr(self, name)) is not None:
                moved[name] = held.to(device)
        return replace(self, inputs={key: value.to(device) for key, value in self.inputs.items()}, **moved)


@dataclass(frozen=True)
class Collator:
    """Opens the media of pair rows, renders contexts and answers, and makes `PairBatch`es.

    `data_root` is the folder that media paths are relative to; `limits` are those the pairs were generated under.
    Of the answers and numbers that pairs carry, batches hold those named in `sides` and `values`. With `shares` all
    answers to one context stand in one row, whatever side they belong to, else each in its own. With an `encoder`
    media are seen once, and opened only where it has not seen them. With `states` packed rows hold the last tokens of
    answers, which predict none of them: a head reads there.
    """

    renderer: Renderer
    data_root: Path
    limits: MediaLimits
    sides: tuple[str, ...] = ("chosen", "rejected")
    shares: bool = False
    values: tuple[str, ...] = ()
    encoder: ContextEncoder | None = None
    states: bool = False

    def __call__(self, rows: Sequence[PairRow]) -> PairBatch:
        """Tensors of `rows`.

        Raises MediaError for media that cannot be opened or are not what the pair was made from, and TrainError,
        naming the pair, for an answer that cannot be rendered or a context whose media the template left out.
        """
        shapes = tuple(shape_of([row.side(side) for row in rows]) for side in self.sides)
        opened: list[dict[str, Chat]] = [{} for _ in rows]
        places = [
            None if answer is None else self._sequence(row, chats, f"{side}[{place}]" if shape else side, answer)
            for side, shape in zip(self.sides, shapes, strict=True)
            for row, chats in zip(rows, opened, strict=True)
            for place, answer in enumerate(laid_out(row.side(side), shape))
        ]
        sequences = [sequence for sequence in places if sequence is not None]
        forward = self._shared(sequences) if self.shares else self._separate(sequences)
        lengths = torch.zeros(len(places), dtype=torch.long)
        lengths[[place is not None for place in places]] = forward.pop("lengths")
        batch = PairBatch(
            ids=tuple(row.id for row in rows),
            sides=self.sides,
            shapes=shapes,
            p=torch.tensor([row.p for row in rows], dtype=torch.float32),
            weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
            values={name: _numbers(name, [row.value(name) for row in rows]) for name in self.values},
            lengths=lengths,
            **forward,
            **_masks([[] if place is None else place.changed for place in places]),
        )
        longest = [batch.laid(side, lengths).view(len(rows), -1).amax(-1) for side in self.sides]
        return replace(batch, lengths=torch.stack(longest))

    def _separate(self, sequences: Sequence[_Sequence]) -> dict[str, Any]:
        """Every sequence in a row of its own."""
        inputs, features = self._encoded(sequences, [sequence.prompt + sequence.answer for sequence in sequences])
        lengths = inputs["attention_mask"].sum(-1)
        places = [
            (row, column)
            for row, (sequence, end) in enumerate(zip(sequences, lengths.tolist(), strict=True))
            for column in range(end - len(sequence.changed) - 1, end - 1)
        ]
        rows, columns = torch.tensor(places).unbind(-1)
        found = Places(rows, columns, inputs["input_ids"][rows, columns + 1])
        return {"inputs": inputs, "features": features, "places": found, "lengths": lengths}

    def _shared(self, sequences: Sequence[_Sequence]) -> dict[str, Any]:
        """Sequences with the same context in one row, which is encoded without an answer."""
        contexts = list(dict.fromkeys(sequence.context for sequence in sequences))
        prompts = [contexts.index(sequence.context) for sequence in sequences]
        firsts = [sequences[prompts.index(row)] for row in range(len(contexts))]
        inputs, features = self._encoded(firsts, [sequence.prompt for sequence in firsts])
        texts = [sequence.answer for sequence in sequences]
        prompted = [sequence.prompt for sequence in firsts]
        packed = pack_texts(self.renderer, inputs, prompted, prompts, texts, keep_last=self.states)
        return {
            "inputs": packed.inputs,
            "features": features,
            "branches": packed.branches,
            "places": packed.places,
            "last": None if packed.ends is None else _placed(packed.ends, packed.inputs["input_ids"]),
            "lengths": packed.lengths,
        }

    def _sequence(self, row: PairRow, opened: dict[str, Chat], where: str, answer: AnswerRow) -> _Sequence:
        """An answer of a pair, rendered; `opened` are the pair's contexts so far, by a name that tells them apart."""
        context = row.context if answer.context is None else answer.context
        name = json.dumps(context, sort_keys=True)
        if name not in opened:
            shown = None if self.encoder is None else outlined_context(context)
            opened[name] = open_context(context, self.data_root, self.limits, row.id) if shown is None else shown
        chat, text, spans = opened[name], answer.text, answer.spans
        try:
            prompt, rendered = self.renderer.prompt(chat), self.renderer.answer(chat, text)
        except SampleError as error:
            raise TrainError(f"pair {row.id}, {where}: {error}") from error
        length = self.renderer.answer_length(prompt, rendered)
        if not length:
            raise TrainError(f"pair {row.id}, {where}: the chat template adds no token for the answer {text!r:.60}")
        changed = [False] * length
        if spans:
            begin = rendered.index(text.strip())  # many templates leave out white space around an answer
            shift = len(prompt) + begin - (len(text) - len(text.lstrip()))
            whole = self.renderer.tokenizer(prompt + rendered, add_special_tokens=False, return_offsets_mapping=True)
            offsets = whole["offset_mapping"][-length:]
            changed = [any(lo - shift < end and hi - shift > first for first, end in spans) for lo, hi in offsets]
        return _Sequence(row.id, name, prompt, rendered, chat.media, changed)

    def _encoded(
        self, sequences: Sequence[_Sequence], texts: Sequence[str]
    ) -> tuple[dict[str, Tensor], Features | None]:
        """Tensors of texts with the media of sequences, one each: their prompts, or those with their answers."""
        if self.encoder is not None:
            inputs, features = self._seen(self.encoder, sequences, texts)
        else:
            inputs, features = self._processed(sequences, texts), None
        self._check_media(inputs["input_ids"], sequences)
        return inputs, features

    def _seen(
        self, encoder: ContextEncoder, sequences: Sequence[_Sequence], texts: Sequence[str]
    ) -> tuple[dict[str, Tensor], Features]:
        """Contexts from the encoder, what texts have more than the prompts put behind them."""
        contexts: dict[str, Encoded] = {}
        rows = []
        for sequence, text in zip(sequences, texts, strict=True):
            if sequence.context not in contexts:
                contexts[sequence.context] = self._context(encoder, sequence)
            encoded = contexts[sequence.context]
            if text != sequence.prompt:
                before, whole = self.renderer.token_ids(sequence.prompt), self.renderer.token_ids(text)
                kept = len(whole) - len(sequence.changed)
                encoded = encoded.followed(len(before) - kept, whole[kept:])
            rows.append(encoded)
        return batched(rows, self.renderer.tokenizer.pad_token_id or 0)

    def _context(self, encoder: ContextEncoder, sequence: _Sequence) -> Encoded:
        turns = json.loads(sequence.context)

        def opened() -> tuple[Media, ...]:
            return open_context(turns, self.data_root, self.limits, sequence.pair).media

        try:
            return encoder(turns, sequence.prompt, opened)
        except ValueError as error:
            raise TrainError(f"pair {sequence.pair}: the processor refuses media and text: {error}") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = "data.max_side" if all(isinstance(part, Picture) for part in sequence.media) else _SMALLER_CLIPS
            raise TrainError(
                f"pair {sequence.pair}: memory ran out in the vision tower, which saw its {len(sequence.media)} media "
                f"alone; in a new run, lower {smaller}"
            ) from None

    def _processed(self, sequences: Sequence[_Sequence], texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts and media through the processor."""
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
        marked[row, : len(flags)] = torch.tensor(flags, dtype=torch.bool)
    return {"mask": mask, "changed": marked}


def _numbers(name: str, values: Sequence[ValueRow]) -> Tensor:
    """Numbers of B pairs as a tensor, B first."""
    shape = shape_of(values)
    fill = 0.0 if set(axes(f"value:{name}") or "") & set(RAGGED) else math.nan
    flat = [fill if number is None else number for value in values for number in laid_out(value, shape)]
    return torch.tensor(flat, dtype=torch.float32).view(len(values), *shape)


def _placed(ends: Tensor, input_ids: Tensor) -> Places:
    """Rows and columns (N, 2) as places, of the tokens that stand there."""
    rows, columns = ends.unbind(-1)
    return Places(rows, columns, input_ids[rows, columns])
