"""Forwards of a model over whole batches: logits behind prompts, and log-probabilities of answers to them.

Each in two ways: a row for every prompt or answer, and a row for what several of them share.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.errors import SampleError
from mmalign.lm.exact import as_usual
from mmalign.lm.load import Loaded
from mmalign.lm.prefix import arguments, pack_texts
from mmalign.lm.prompt import Prompt
from mmalign.lm.render import PaddingSide
from mmalign.lm.stems import Stem
from mmalign.types import TokenLogps

#: Logits turned to float32 at a time while scoring, in numbers.
_CHUNK = 1 << 24


class Forwards:
    """A loaded model, and what turns prompts into its inputs and its outputs into numbers."""

    def __init__(self, loaded: Loaded) -> None:
        self.name = loaded.name
        self.model = loaded.model.eval()
        self.renderer = loaded.renderer
        self.tokenizer = self.renderer.tokenizer
        self._inner = getattr(self.model, "get_base_model", lambda: self.model)()  # what an adapter is wrapped around
        self._arguments = frozenset(inspect.signature(self._inner.forward).parameters)

    def _score_shared(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[TokenLogps]:
        """Scores from rows of a prompt with all answers to it."""
        firsts = list({prompt.key: prompt for prompt in prompts}.values())
        keys = [prompt.key for prompt in firsts]
        texts, rows = [prompt.text for prompt in firsts], [keys.index(prompt.key) for prompt in prompts]
        encoded = self._encode(texts, firsts, "right")
        packed = pack_texts(self.renderer, encoded, texts, rows, answers)
        device = self.model.device
        inputs = {name: value.to(device) for name, value in packed.inputs.items()}
        places = packed.places.to(device)
        keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        keep[places.rows, places.columns] = True
        logits = self._logits(arguments(self._inner, inputs, packed.branches.to(device)), keep)
        which = (keep.flatten().cumsum(0) - 1).view(keep.shape)[places.rows, places.columns]
        lengths = [self.renderer.answer_length(p.text, a) for p, a in zip(prompts, answers, strict=True)]
        return _scores(logits, which, places.labels, lengths)

    def _score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str], padding_side: PaddingSide
    ) -> list[TokenLogps]:
        """Scores from rows of a prompt with one answer."""
        lengths = [self.renderer.answer_length(p.text, a) for p, a in zip(prompts, answers, strict=True)]
        inputs = self._encode([p.text + a for p, a in zip(prompts, answers, strict=True)], prompts, padding_side)
        ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
        # Tokens that are still to come at each position, itself included: the answer is where at most `length` are.
        left = real.flip(1).cumsum(1).flip(1)
        is_answer = real & (left <= torch.tensor(lengths, device=ids.device)[:, None])
        predicts = is_answer.roll(-1, dims=1)
        predicts[:, -1] = False
        logits = self._logits(inputs, predicts)
        return _scores(logits, torch.arange(len(logits), device=logits.device), ids[is_answer], lengths)

    def _next_shared(self, prompts: Sequence[Prompt], stems: Sequence[Stem]) -> list[Tensor]:
        """Logits behind prompts, a row for every stem."""
        # A row of one prompt alone is cut where others are: its last letters are its rest.
        cut = [stem if stem.rests[0] else Stem(stem.text[:-1], stem.members, (stem.text[-1:],)) for stem in stems]
        texts = [stem.text for stem in cut]
        encoded = self._encode(texts, [prompts[stem.members[0]] for stem in cut], "right")
        rows = [row for row, stem in enumerate(cut) for _ in stem.members]
        rests = [rest for stem in cut for rest in stem.rests]
        packed = pack_texts(self.renderer, encoded, texts, rows, rests, keep_last=True)
        assert packed.ends is not None
        inputs = {name: value.to(self.model.device) for name, value in packed.inputs.items()}
        ends = packed.ends.to(self.model.device).unbind(-1)
        keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        keep[ends] = True
        logits = self._logits(arguments(self._inner, inputs, packed.branches.to(self.model.device)), keep)
        which = (keep.flatten().cumsum(0) - 1).view(keep.shape)[ends]
        order = [number for stem in cut for number in stem.members]
        found = dict(zip(order, logits[which].float().cpu().unbind(0), strict=True))
        return [found[number] for number in range(len(prompts))]

    def _next_each(self, prompts: Sequence[Prompt], padding_side: PaddingSide) -> list[Tensor]:
        """Logits behind prompts, a row for each."""
        inputs = self._encode([p.text for p in prompts], prompts, padding_side)
        real = inputs["attention_mask"].bool()
        is_last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        return list(self._logits(inputs, is_last).float().cpu().unbind(0))

    def _logits(self, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
        """Logits (kept, vocab) at the positions where `keep` (batch, time) is true, row by row."""
        if "logits_to_keep" not in self._arguments:
            whole: Tensor = self.model(**inputs, use_cache=False).logits
            return whole[keep]
        kept: Tensor = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits
        return kept if kept.ndim == 2 else kept[keep]

    def _encode(self, texts: Sequence[str], prompts: Sequence[Prompt], side: PaddingSide) -> dict[str, Tensor]:
        try:
            with as_usual():
                encoded = self.renderer.encode(texts, [p.media for p in prompts], side)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise SampleError(f"the model's processor refuses the chat: {error}") from error
        tensors: dict[str, Tensor] = {}
        for name, value in encoded.items():
            if name == "token_type_ids" and name not in self._arguments:
                continue
            # Pixels take the model's type; one number per clip (its seconds per frame) places tokens and stays exact.
            kind = self.model.dtype if value.is_floating_point() and value.ndim > 1 else None
            tensors[name] = value.to(self.model.device, kind)
        return tensors


def _scores(logits: Tensor, rows: Tensor, targets: Tensor, lengths: Sequence[int]) -> list[TokenLogps]:
    """Log-probabilities of targets (M,) by rows (M,) of logits, cut into answers of these lengths."""
    step = max(1, _CHUNK // logits.shape[1])
    parts = [
        torch.log_softmax(logits[own].float(), dim=-1).gather(1, wanted[:, None])[:, 0]
        for own, wanted in zip(torch.split(rows, step), torch.split(targets, step), strict=True)
    ]
    logps = torch.split(torch.cat(parts).cpu(), list(lengths))
    return [
        TokenLogps(tuple(row.tolist()), tuple(tokens.tolist()))
        for row, tokens in zip(logps, torch.split(targets.cpu(), list(lengths)), strict=True)
    ]
