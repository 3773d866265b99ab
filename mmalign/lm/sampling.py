"""Decoding of many requests in one batch, each with its own settings, its own randomness and its own end.

Random choices come from Gumbel noise (argmax of log-probabilities plus Gumbel noise is a sample; Gumbel 1954, Maddison
et al. 2014, arXiv 1411.0030) that is a hash of (seed, step, token), computed for the whole batch at once. So the noise
of a request depends on nothing but its own seed, whatever the device, the batch or the order.

Logits themselves differ in the last bits between batch shapes. Where that could change a token, it is drawn from exact
logits if there is a `Referee` (`stable`); without one, in bfloat16, such changes are common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.lm.stable import SLACK, Referee, is_settled, largest
from mmalign.types import Sampling

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the step of SplitMix64 (Steele et al. 2014), as a signed number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB

#: Steps between looks at which rows are still wanted.
_CHECK_EVERY = 16


def gumbel(keys: Tensor, step: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise (batch, vocab) as a pure function of each row's key, the step and the token.

    `keys` are int64 (batch,). Uniform numbers are 40-bit, so that the upper tail is fine-grained.
    """
    steps = torch.full_like(keys, step + 1) * _GOLDEN
    rows = _mix(_mix(keys) + steps)
    tokens = torch.arange(1, vocab_size + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
    bits = _mix(rows[:, None] + tokens[None, :])
    uniform = (((bits >> 24) & 0xFFFFFFFFFF).float() + 0.5) * 2.0**-40
    return -torch.log(-torch.log1p(-uniform.clamp_(max=1 - 2.0**-24).to(dtype)))


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64; int64 arithmetic wraps around and the masks make the shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


class RowwiseSampling:
    """Logits processor: scores whose argmax is the token that each row draws.

    Penalty, temperature, top-k, top-p, noise, row by row. Meaning and order of the settings are those of transformers,
    except that the repetition penalty counts text tokens only (not padding, not media placeholders). Greedy rows come
    back as they were, so their argmax is greedy.

    Args:
        samplings: settings, one per row.
        seeds: 63-bit numbers, one per row.
        prompts: int64 (batch, time), padded prompt tokens.
        countable: bool (batch, time), which of them the repetition penalty counts.
        referee: asked for exact logits where those given leave a token open.
        slack: how far logits may be from exact ones, as a share of the row's largest.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        prompts: Tensor,
        countable: Tensor,
        referee: Referee | None = None,
        slack: float = SLACK,
    ) -> None:
        device = prompts.device
        self._samplings, self._seeds = samplings, seeds
        self._referee, self._slack = referee, slack
        self._prompt_length = prompts.shape[1]
        drawn = [i for i, s in enumerate(samplings) if s.temperature > 0]
        chosen = [samplings[i] for i in drawn]
        self._all_drawn = len(drawn) == len(samplings)
        self._drawn = torch.tensor(drawn, device=device, dtype=torch.int64)
        self._keys = torch.tensor([seeds[i] for i in drawn], device=device, dtype=torch.int64)
        self._temperatures = torch.tensor([s.temperature for s in chosen], device=device)[:, None]
        self._top_k = [s.top_k for s in chosen]
        self._top_p = torch.tensor([s.top_p for s in chosen], device=device)[:, None]
        self._has_top_p = any(s.top_p < 1 for s in chosen)
        self._penalties = torch.tensor([s.repetition_penalty for s in samplings], device=device)[:, None]
        self._has_penalty = any(s.repetition_penalty != 1 for s in samplings)
        self._prompts, self._countable = prompts, countable
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores
        if self._has_penalty:
            scores = self._penalise(input_ids, scores)
        rows = noise = None
        drawn = scores
        if len(self._keys):
            rows = (scores if self._all_drawn else scores[self._drawn]) / self._temperatures
            step = input_ids.shape[1] - self._prompt_length
            noise = gumbel(self._keys, step, scores.shape[1], scores.dtype)
            kept = self._keep_top(rows) + noise
            drawn = kept if self._all_drawn else scores.index_copy(0, self._drawn, kept)
        if self._referee is None:
            return drawn
        open_rows = self._open(logits, scores, rows, noise)
        return self._judged(open_rows, input_ids, logits, drawn) if open_rows else drawn

    def _open(self, logits: Tensor, scores: Tensor, rows: Tensor | None, noise: Tensor | None) -> list[int]:
        """Rows whose token could be another one for logits that differ in the last bits."""
        slack = largest(logits) * self._slack
        if self._has_penalty:
            slack = slack * self._penalties.clamp(min=1 / self._penalties)
        settled = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        if not self._all_drawn:
            settled = is_settled(scores, 0.0, slack, [0], None)
        if rows is not None and noise is not None:
            slack = (slack if self._all_drawn else slack[self._drawn]) / self._temperatures
            top_p = self._top_p if self._has_top_p else None
            settled[self._drawn] = is_settled(rows, noise, slack, self._top_k, top_p)
        return (~settled).nonzero()[:, 0].tolist()

    def _judged(self, open_rows: Sequence[int], input_ids: Tensor, logits: Tensor, drawn: Tensor) -> Tensor:
        """The same with the draws of some rows made from exact logits."""
        assert self._referee is not None
        drawn = drawn.clone()
        for row in open_rows:
            own = slice(row, row + 1)
            exact = self._referee(row, input_ids[row, self._prompt_length :].tolist(), logits[row])
            if exact is not None:
                alone = RowwiseSampling(
                    self._samplings[own], self._seeds[own], self._prompts[own], self._countable[own]
                )
                token = alone(input_ids[own], exact[None].to(drawn.device)).argmax()
                drawn[row] = -torch.inf
                drawn[row, token] = 0
        return drawn

    def _penalise(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._seen is None:
            counts = torch.zeros_like(scores, dtype=torch.int32)
            counts.scatter_add_(1, self._prompts, self._countable.to(torch.int32))
            self._seen = (counts > 0).scatter_(1, input_ids[:, self._prompt_length :], True)
        elif input_ids.shape[1] > self._prompt_length:
            self._seen.scatter_(1, input_ids[:, -1:], True)
        penalised = torch.where(scores < 0, scores * self._penalties, scores / self._penalties)
        return torch.where(self._seen, penalised, scores)

    def _keep_top(self, rows: Tensor) -> Tensor:
        limits = [k if 0 < k < rows.shape[1] else rows.shape[1] for k in self._top_k]
        if min(limits) < rows.shape[1]:
            best = torch.topk(rows, max(k for k in limits if k < rows.shape[1]), dim=1).values
            last = torch.tensor([min(k, best.shape[1]) - 1 for k in limits], device=rows.device)[:, None]
            floor = best.gather(1, last)
            floor[torch.tensor([k == rows.shape[1] for k in limits], device=rows.device)] = -torch.inf
            rows = rows.masked_fill(rows < floor, -torch.inf)
        if self._has_top_p:
            ascending, order = torch.sort(rows, dim=1)
            dropped = ascending.softmax(1).cumsum(1) <= 1 - self._top_p
            dropped &= self._top_p < 1
            dropped[:, -1] = False
            rows = rows.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf)
        return rows


@dataclass(frozen=True, slots=True)
class Ending:
    """How a row ended: its tokens with the end-of-turn token, its text, and whether the limit cut it."""

    tokens: tuple[int, ...]
    text: str
    is_cut: bool


class RowwiseStopping:
    """Stopping criterion: ends each row at its own limit or stop string, and rows that nobody waits for any more.

    Args:
        tokenizer: decodes the last tokens of rows that have stop strings.
        limits: most new tokens, one per row.
        stops: stop strings, one tuple per row.
        prompt_length: length of the padded prompts.
        is_abandoned: asked for each row at the first step and then now and again.

    Attributes:
        ended: for each row that was ended here, after how many new tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        limits: Sequence[int],
        stops: Sequence[tuple[str, ...]],
        prompt_length: int,
        is_abandoned: Callable[[int], bool],
    ) -> None:
        self._tokenizer = tokenizer
        self._at_limit: dict[int, list[int]] = {}
        for row, limit in enumerate(limits):
            self._at_limit.setdefault(limit, []).append(row)
        self._stops = [(i, stop, max(len(s.encode()) for s in stop) + 4) for i, stop in enumerate(stops) if stop]
        self._prompt_length = prompt_length
        self._is_abandoned = is_abandoned
        self._done: Tensor | None = None
        self.ended: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._done is None:
            self._done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        num_new = input_ids.shape[1] - self._prompt_length
        ending_now = list(self._at_limit.get(num_new, ()))
        if num_new % _CHECK_EVERY == 1:
            ending_now += [row for row in range(input_ids.shape[0]) if self._is_abandoned(row)]
        for row, stop, window in self._stops:
            if row not in self.ended:
                # Each token adds at least one byte, so a stop string that has just ended lies within the window.
                last = input_ids[row, max(self._prompt_length, input_ids.shape[1] - window) :].tolist()
                tail = decode(self._tokenizer, last)
                if any(s in tail for s in stop):
                    ending_now.append(row)
        if ending_now:
            self._done[ending_now] = True
            for row in ending_now:
                self.ended.setdefault(row, num_new)
        return self._done


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def ending(tokenizer: Any, tokens: Sequence[int], eos: frozenset[int], stop: Sequence[str], limit: int) -> Ending:
    """What one row of new tokens says: up to its EOS, its stop string or its limit, whichever came first.

    A stop string stays in the text, what its last token wrote behind it goes. An answer that ends by itself with the
    very last token it was allowed is not cut.
    """
    end = next((i + 1 for i, token in enumerate(tokens[:limit]) if token in eos), None)
    kept = tuple(tokens[: min(limit, end or limit)])
    text = decode(tokenizer, kept)
    cuts = [text.index(s) + len(s) for s in stop if s in text]
    return Ending(kept, text[: min(cuts)] if cuts else text, end is None and not cuts)
