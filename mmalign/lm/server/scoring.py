"""Log-probabilities of given answers from vLLM, which reports those of a prompt's own tokens (`prompt_logprobs`).

An answer is put into the chat as the assistant's turn, and everything is asked for as a prompt. Where the answer starts
is known by asking for the chat without it: its tokens must be the first ones. Where it ends is known by how many tokens
the chat template puts behind an answer: the end of turn, which counts, and perhaps a line break, which does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmalign.errors import SampleError
from mmalign.types import TokenLogps


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of a prompt and the log-probability of each behind those before it; the first has none (0)."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]


def prompt_tokens(answer: Mapping[str, Any]) -> PromptTokens | None:
    """What the server says of the prompt; None where it says nothing, or not one token for each place."""
    entries = answer.get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) < 2:
        return None
    ids, logps = [-1], [0.0]  # of the first token vLLM says nothing, not even which it is
    for entry in entries[1:]:
        if not isinstance(entry, dict) or len(entry) != 1:
            return None
        [(token, told)] = entry.items()
        logp = told.get("logprob") if isinstance(told, dict) else None
        if not str(token).isdecimal() or isinstance(logp, bool) or not isinstance(logp, int | float):
            return None
        if not math.isfinite(logp) or logp > 1e-3:
            return None
        ids.append(int(token))
        logps.append(min(float(logp), 0.0))
    return PromptTokens(tuple(ids), tuple(logps))


def num_closing(begun: PromptTokens, closed: PromptTokens) -> int:
    """How many tokens the template puts behind an answer. Raises SampleError where it puts none."""
    if closed.ids[: len(begun.ids)] != begun.ids or len(closed.ids) == len(begun.ids):
        raise SampleError("the chat template ends no answer in a way of its own, so it cannot be scored")
    return len(closed.ids) - len(begun.ids)


def answer_tokens(prompt: PromptTokens, whole: PromptTokens, closing: int) -> TokenLogps:
    """The answer's tokens, its end of turn included. Raises SampleError where the prompt does not come first."""
    start, end = len(prompt.ids), len(whole.ids) - closing + 1
    if whole.ids[:start] != prompt.ids or end <= start:
        raise SampleError("the server's chat template shows a given answer otherwise than it asks for one")
    return TokenLogps(whole.logps[start:end], whole.ids[start:end])
