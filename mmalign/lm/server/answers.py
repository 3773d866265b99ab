"""What a server answered, read with suspicion: half an answer is told from a whole one, and nothing is made up."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmalign.errors import SampleError
from mmalign.lm.protocol import Option
from mmalign.types import Choice, Completion, Sampling

#: Log-probabilities below, some servers' stand-in for minus infinity included, count as this one.
_LEAST = -9999.0


class HalfAnswerError(Exception):
    """No whole answer: cut off in the middle, not JSON, or without what an answer has."""


def read_answer(text: str) -> dict[str, Any]:
    """The first choice of a response, with `usage` and `prompt_logprobs`. Raises HalfAnswerError."""
    try:
        response = json.loads(text)
    except (ValueError, RecursionError):
        raise HalfAnswerError("an answer that is no JSON") from None
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise HalfAnswerError("an answer without choices")
    if not isinstance(choices[0].get("message"), dict):
        raise HalfAnswerError("a choice without a message")
    if choices[0].get("finish_reason") in ("abort", "error"):
        raise HalfAnswerError("an answer that was broken off")
    usage = response.get("usage")
    of_prompt = response.get("prompt_logprobs")
    return {**choices[0], "usage": usage if isinstance(usage, dict) else {}, "prompt_logprobs": of_prompt}


def completion_of(answer: Mapping[str, Any], sampling: Sampling, seed: int) -> Completion:
    """The answer as a completion: up to its first stop string, which stays in the text.

    Tokens are counted as the server counts them, so those behind a stop string count too where the server was not told
    of it; 0 where it does not count. Raises SampleError for an answer that the server withheld.
    """
    text = _text_of(answer)
    finish = answer.get("finish_reason")
    if not text and finish in ("tool_calls", "function_call"):
        raise SampleError(f"the server gave no text (finish_reason {finish})")
    if finish == "content_filter":  # what is there may be half an answer
        raise SampleError("the server withheld its answer, or a part of it (finish_reason content_filter)")
    if not _is_unicode(text):
        raise SampleError("the server's answer is no valid Unicode text")
    cuts = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
    counted = answer["usage"].get("completion_tokens")
    return Completion(
        text[: min(cuts, default=len(text))],
        counted if isinstance(counted, int) and counted >= 0 else 0,
        "length" if finish == "length" and not cuts else "stop",
        seed if sampling.temperature > 0 else None,
    )


def _text_of(answer: Mapping[str, Any]) -> str:
    content = answer["message"].get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def top_of(answer: Mapping[str, Any]) -> dict[str, float] | None:
    """Log-probabilities of the likeliest first tokens by their text, in nats; None where the server gave none."""
    logprobs = answer.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    tops = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(tops, list) or not tops:
        return None
    found: dict[str, set[float]] = {}
    for entry in (*tops, first):  # a sampled token outside of the likeliest is reported beside them
        token, logp = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if isinstance(token, str) and isinstance(logp, int | float) and not math.isnan(logp) and logp <= 1e-3:
            found.setdefault(token, set()).add(min(float(max(logp, _LEAST)), 0.0))
    # Two tokens may have one text ("yes" at the start of a word and inside of one); a token told twice has one number.
    return {token: min(_log_sum(logps), 0.0) for token, logps in found.items()} or None


def _log_sum(logps: Collection[float]) -> float:
    most = max(logps)
    return most + math.log(math.fsum(math.exp(logp - most) for logp in sorted(logps)))


def choice_of(top: Mapping[str, float], options: Sequence[Option]) -> Choice:
    """The choice between options by the likeliest first tokens.

    An option has the probabilities of its forms, as given and with a blank in front, that are among them; a form that
    two options share counts for neither. An option without any is given the most it can have: no more than the least
    likely token reported, and no more than what the reported ones leave. `mass` counts what was reported only.

    Raises SampleError when no option has a form among the likeliest tokens.
    """
    forms = [{form for given in option for form in (given, f" {given}")} for option in options]
    times = Counter(form for own in forms for form in own)
    shares = [
        math.fsum(math.exp(top[form]) for form in sorted(own) if times[form] == 1 and form in top) for own in forms
    ]
    mass = math.fsum(shares)
    if not mass > 0:
        likeliest = ", ".join(repr(token) for token in sorted(top, key=lambda token: -top[token])[:5])
        raise SampleError(
            f"none of the options is among the {len(top)} likeliest first tokens that the server reports "
            f"({likeliest}, ...); an option must be one token"
        )
    rest = max(0.0, 1.0 - math.fsum(math.exp(logp) for logp in top.values()))
    most = min(rest, math.exp(min(top.values())))
    bounded = [share or most for share in shares]
    return Choice(tuple(share / math.fsum(bounded) for share in bounded), min(1.0, mass))
