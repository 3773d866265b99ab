"""One batch through the model: generate, score or next-token logits, for rows that may differ in every setting.

Synchronous, and without knowledge of who asks; `local` decides what goes into a batch and keeps to one thread.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import GenerationConfig

from mmalign.errors import SampleError
from mmalign.lm.features import placeholder_ids
from mmalign.lm.load import Loaded
from mmalign.lm.prefix import arguments, compare, is_exact, pack_texts
from mmalign.lm.processing import REFUSALS
from mmalign.lm.prompt import Prompt
from mmalign.lm.render import PaddingSide
from mmalign.lm.sampling import RowwiseSampling, RowwiseStopping, ending
from mmalign.lm.stems import Stem, find_stems
from mmalign.types import Chat, Clip, Completion, Sampling, TokenLogps

log = logging.getLogger("mmalign.lm")

#: Logits turned to float32 at a time while scoring, in numbers.
_CHUNK = 1 << 24


class BatchModel:
    """A loaded model that runs whole batches. Needs one thread to itself; call it inside `torch.inference_mode`.

    Attributes:
        max_positions: prompt and answer together have no room for more tokens; None when the model sets no limit.
        vocab_size: width of the logits.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.name = loaded.name
        self.model = loaded.model.eval()
        self.renderer = loaded.renderer
        self.tokenizer = self.renderer.tokenizer
        self._inner = getattr(self.model, "get_base_model", lambda: self.model)()  # what an adapter is wrapped around
        self._arguments = frozenset(inspect.signature(self._inner.forward).parameters)
        text_config = self.model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_positions: int | None = getattr(text_config, "max_position_embeddings", None)
        self._eos = self._eos_ids()
        pad = self.tokenizer.pad_token_id
        self._pad: int = min(self._eos) if pad is None else pad
        if pad is None:
            self.tokenizer.pad_token_id = self._pad
        self._shares: dict[str, bool] = {}
        self._asks_once: dict[str, bool] = {}
        self._placeholders = sorted({*self.renderer.media_ids, *placeholder_ids(self.model.config)})

    def prompt(self, chat: Chat) -> Prompt:
        """Render a chat. Raises SampleError when the model cannot take it."""
        text = self.renderer.prompt(chat)
        media = chat.media
        try:
            num_tokens = self.renderer.num_tokens(text, media)
        except REFUSALS as error:
            kinds = "video" if any(isinstance(part, Clip) for part in media) else "picture"
            raise SampleError(f"the model's processor refuses the {kinds}: {error}") from error
        if num_tokens == 0:
            raise SampleError("the chat is empty: it gives the model no token to go on from")
        if self.max_positions is not None and num_tokens >= self.max_positions:
            raise SampleError(f"the prompt has {num_tokens} tokens, the model takes fewer than {self.max_positions}")
        is_fresh = not (chat.messages and chat.messages[-1].role == "assistant" and chat.messages[-1].text)
        lead = self.renderer.lead if is_fresh else ""
        return Prompt(chat, text, media, num_tokens, lead, self.renderer.group(media))

    def room(self, prompt: Prompt, sampling: Sampling) -> int:
        """Most new tokens for a request: its own limit, or what the model has positions for."""
        if self.max_positions is None:
            return sampling.max_new_tokens
        return min(sampling.max_new_tokens, self.max_positions - prompt.num_tokens)

    def generate(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        is_abandoned: Callable[[int], bool] = lambda row: False,
    ) -> list[Completion]:
        """One completion per row; rows for which `is_abandoned(row)` turns true stop early with what they have."""
        inputs = self._encode([p.text for p in prompts], prompts, "left")
        ids: Tensor = inputs["input_ids"]
        countable = inputs["attention_mask"].bool()
        for token in self._placeholders:
            countable &= ids != token
        limits = [self.room(p, s) for p, s in zip(prompts, samplings, strict=True)]
        stopping = RowwiseStopping(self.tokenizer, limits, [s.stop for s in samplings], ids.shape[1], is_abandoned)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(limits),
            eos_token_id=sorted(self._eos),
            pad_token_id=self._pad,
            use_cache=True,
        )
        with self._own_defaults(config):
            out: Tensor = self.model.generate(
                **inputs,
                generation_config=config,
                logits_processor=[RowwiseSampling(samplings, seeds, ids, countable)],
                stopping_criteria=[stopping],
            )
        rows = out[:, ids.shape[1] :].tolist()
        completions = []
        for row, (prompt, sampling, tokens) in enumerate(zip(prompts, samplings, rows, strict=True)):
            end = ending(self.tokenizer, tokens, self._eos, sampling.stop, stopping.ended.get(row, limits[row]))
            text = end.text.removeprefix(prompt.lead) if prompt.lead else end.text
            seed = seeds[row] if sampling.temperature > 0 else None
            completions.append(Completion(text, len(end.tokens), "length" if end.is_cut else "stop", seed))
        return completions

    def score(
        self, prompts: Sequence[Prompt], answers: Sequence[str], padding_side: PaddingSide = "right"
    ) -> list[TokenLogps]:
        """Log-probabilities of each rendered answer behind its prompt; logits exist at answer positions only.

        Where several answers have one prompt, it and its media are computed once for all of them, if rows are padded
        on the right and the model gives the same numbers: that is tried once for every kind of media.
        """
        kind = prompts[0].group[0]
        num_prompts = len({prompt.key for prompt in prompts})
        if padding_side == "left" or num_prompts == len(prompts) or self._shares.get(kind) is False:
            return self._score_each(prompts, answers, padding_side)
        if self._shares.get(kind):
            return self._score_shared(prompts, answers)
        plain = self._score_each(prompts, answers, padding_side)
        tried: list[TokenLogps] = []

        def found() -> Tensor:
            tried.extend(self._score_shared(prompts, answers))
            return _flat(tried)

        values, reason = compare(found, _flat(plain), is_exact=is_exact(self.model))
        self._shares[kind] = values is not None
        if values is None:
            log.warning("model %s: prompts are computed once for each answer, not for all: %s", self.name, reason)
        return plain

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

    def next_logits(self, prompts: Sequence[Prompt], padding_side: PaddingSide = "right") -> list[Tensor]:
        """Logits of the token behind each prompt: float32 (vocab,) on the CPU.

        What prompts about the same media begin with is computed once, on the conditions that `score` has.
        """
        kind = prompts[0].group[0]
        stems = find_stems(prompts, self.renderer)
        if padding_side == "left" or len(stems) == len(prompts) or self._asks_once.get(kind) is False:
            return self._next_each(prompts, padding_side)
        if not self._asks_once.get(kind):
            plain = self._next_each(prompts, padding_side)
            expected = torch.cat([row.log_softmax(-1) for row in plain])
            values, reason = compare(
                lambda: torch.cat([row.log_softmax(-1) for row in self._next_shared(prompts, stems)]),
                expected,
                is_exact=is_exact(self.model),
            )
            self._asks_once[kind] = values is not None
            if values is None:
                log.warning("model %s: what prompts begin with is computed for each of them: %s", self.name, reason)
            return plain
        return self._next_shared(prompts, stems)

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

    # Inside ----------------------------------------------------------------------------------------------------------

    def _logits(self, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
        """Logits (kept, vocab) at the positions where `keep` (batch, time) is true, row by row."""
        if "logits_to_keep" not in self._arguments:
            whole: Tensor = self.model(**inputs, use_cache=False).logits
            return whole[keep]
        kept: Tensor = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits
        return kept if kept.ndim == 2 else kept[keep]

    def _encode(self, texts: Sequence[str], prompts: Sequence[Prompt], side: PaddingSide) -> dict[str, Tensor]:
        try:
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

    def _eos_ids(self) -> frozenset[int]:
        config = getattr(self.model, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        found = [*(listed if isinstance(listed, list) else [listed]), self.tokenizer.eos_token_id]
        found.append(self.tokenizer.convert_tokens_to_ids(self.renderer.end_of_turn))
        return frozenset(token for token in found if isinstance(token, int))

    @contextmanager
    def _own_defaults(self, config: GenerationConfig) -> Iterator[None]:
        """Keep the checkpoint's sampling defaults (Qwen2.5-VL penalises repetition, say) out of what was asked for."""
        owners = (self.model, self._inner)
        before = [owner.generation_config for owner in owners]
        self.model.generation_config = config
        try:
            yield
        finally:
            for owner, own in zip(owners, before, strict=True):
                owner.generation_config = own


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


def _flat(scores: Sequence[TokenLogps]) -> Tensor:
    return torch.tensor([value for score in scores for value in score.logps])
