"""One batch through the model: generate, score or next-token logits, for rows that may differ in every setting.

Synchronous, and without knowledge of who asks; `local` decides what goes into a batch and keeps to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from mmalign.errors import SampleError
from mmalign.lm.choosing import choice_from_logits, option_logps
from mmalign.lm.exact import Exact, grown
from mmalign.lm.features import placeholder_ids
from mmalign.lm.forwards import Forwards
from mmalign.lm.load import Loaded
from mmalign.lm.prefix import EXACT_TOLERANCE, TOLERANCE, compare, is_exact
from mmalign.lm.processing import REFUSALS
from mmalign.lm.prompt import Prompt
from mmalign.lm.render import PaddingSide
from mmalign.lm.sampling import RowwiseSampling, RowwiseStopping, ending
from mmalign.lm.stable import CHOICE_SLACK, MANY_TIMES, SLACK, SOME_TIMES, largest, settled_choice, told
from mmalign.lm.stems import find_stems
from mmalign.types import Chat, Choice, Clip, Completion, Sampling, TokenLogps

log = logging.getLogger("mmalign.lm")


class BatchModel(Forwards):
    """A loaded model that runs whole batches. Needs one thread to itself; call it inside `torch.inference_mode`.

    Attributes:
        max_positions: prompt and answer together have no room for more tokens; None when the model sets no limit.
        vocab_size: width of the logits.
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        text_config = self.model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_positions: int | None = getattr(text_config, "max_position_embeddings", None)
        self._stretch = _stretch(text_config)
        if self._stretch is not None:
            _fill_tables(self.model, self._stretch)
        self._eos = self._eos_ids()
        pad = self.tokenizer.pad_token_id
        self._pad: int = min(self._eos) if pad is None else pad
        if pad is None:
            self.tokenizer.pad_token_id = self._pad
        self._exact = Exact(self.name, self.model) if is_exact(self.model) else None
        self._shares: dict[str, bool] = {}
        self._asks_once: dict[str, bool] = {}
        self._num_alone = 0
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

    def zone(self, num_tokens: int, room: int = 0) -> int:
        """Rows with equal zones can share a batch: those of `num_tokens` that may grow by `room`.

        A model with LongRoPE (Phi-3) turns all positions of a batch by other angles once its longest row goes beyond
        some length. A row that may grow beyond it is alone, and so is one that might as its batch is padded.
        """
        if self._stretch is None or num_tokens + room <= self._stretch // (2 if room else 1):
            return 0
        if num_tokens > self._stretch:
            return 1
        self._num_alone += 1
        return 1 + self._num_alone

    def generate(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        is_abandoned: Callable[[int], bool] = lambda row: False,
    ) -> list[Completion]:
        """One completion per row; rows for which `is_abandoned(row)` turns true stop early with what they have.

        With float32 weights a completion is the one that exact logits give, whatever the batch.
        """
        inputs = self._encode([p.text for p in prompts], prompts, "left")
        ids: Tensor = inputs["input_ids"]
        countable = inputs["attention_mask"].bool()
        for token in self._placeholders:
            countable &= ids != token
        limits = [self.room(p, s) for p, s in zip(prompts, samplings, strict=True)]
        stopping = RowwiseStopping(self.tokenizer, limits, [s.stop for s in samplings], ids.shape[1], is_abandoned)

        def referee(row: int, tokens: Sequence[int], found: Tensor) -> Tensor | None:
            if row in stopping.ended or not self._eos.isdisjoint(tokens):
                return None  # it has ended and only waits for the others
            if not set(tokens).isdisjoint(self._placeholders):
                return None  # a forward would look for the medium of a placeholder that the model itself wrote
            return self._exact_next(prompts[row], found, tokens)

        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(limits),
            eos_token_id=sorted(self._eos),
            pad_token_id=self._pad,
            use_cache=True,
        )
        process = RowwiseSampling(samplings, seeds, ids, countable)
        if self._exact is not None:
            slack = max(SLACK, MANY_TIMES * self._exact.noise)
            process = RowwiseSampling(samplings, seeds, ids, countable, referee, slack)
        with self._own_defaults(config):
            out: Tensor = self.model.generate(
                **inputs,
                generation_config=config,
                logits_processor=[process],
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

        With float32 weights all is computed in float64 and told in fixed steps, so it does not depend on the batch.
        """
        if self._exact is not None:
            exact = self._exact(lambda: self._score(prompts, answers, padding_side, EXACT_TOLERANCE))
            if exact is not None:
                return [TokenLogps(told(score.logps), score.tokens) for score in exact]
        return self._score(prompts, answers, padding_side)

    def _score(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        padding_side: PaddingSide,
        tolerance: float = TOLERANCE,
    ) -> list[TokenLogps]:
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

        values, reason = compare(found, _flat(plain), is_exact=self._exact is not None, tolerance=tolerance)
        self._shares[kind] = values is not None
        if values is None:
            log.warning("model %s: prompts are computed once for each answer, not for all: %s", self.name, reason)
        return plain

    def choice(self, prompt: Prompt, logits: Tensor, tokens: Sequence[Sequence[int]]) -> Choice:
        """The choice among options with these token ids, given the next token's logits (vocab,) as `next_logits` does.

        With float32 weights it is the one that exact logits give, in fixed steps, whatever the batch.
        """
        if self._exact is None:
            return choice_from_logits(logits, tokens)
        logps = option_logps(logits.double(), tokens)
        if self._exact.is_measured:  # the first choice of a model shows how large its noise is
            slack = max(CHOICE_SLACK, SOME_TIMES * self._exact.noise) * float(largest(logits))
            settled = settled_choice(logps, slack)
            if settled is not None:
                return settled
        exact = self._exact_next(prompt, logits)
        found = settled_choice(logps if exact is None else option_logps(exact, tokens), 0)
        assert found is not None
        return found

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
                is_exact=self._exact is not None,
            )
            self._asks_once[kind] = values is not None
            if values is None:
                log.warning("model %s: what prompts begin with is computed for each of them: %s", self.name, reason)
            return plain
        return self._next_shared(prompts, stems)

    def _exact_next(self, prompt: Prompt, found: Tensor, tokens: Sequence[int] = ()) -> Tensor | None:
        """Logits (vocab,) of the token behind a prompt and new tokens in float64, where `found` are those of a batch.

        None where the model has no exact logits. The row is alone, without padding or a cache.
        """
        if self._exact is None:
            return None

        def alone() -> Tensor:
            inputs = grown(self._encode([prompt.text], [prompt], "right"), tokens)
            is_last = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
            is_last[:, -1] = True
            return self._logits(inputs, is_last)[0]

        exact = self._exact(alone)
        if exact is not None:
            self._exact.compare(exact, found)
        return exact

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


def _stretch(config: Any) -> int | None:
    """Tokens beyond which LongRoPE takes its other angles; None for models without it."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    limits = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return next((limit for limit in limits if limit is not None), None)


@torch.inference_mode()
def _fill_tables(model: Any, length: int) -> None:
    """Have LongRoPE note its angles for longer rows: noted in a forward in float64 they would be others."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            with suppress(TypeError):  # one table for each kind of layers
                module(torch.zeros(1, device=model.device), torch.tensor([[length]], device=model.device))


def _flat(scores: Sequence[TokenLogps]) -> Tensor:
    return torch.tensor([value for score in scores for value in score.logps], dtype=torch.float64)
