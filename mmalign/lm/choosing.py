"""Probabilities of options from next-token logits (LOGIT evidence): pure functions of token ids and logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.lm.protocol import Option
from mmalign.lm.render import Renderer
from mmalign.types import Choice


def first_tokens(renderer: Renderer, prompt: str, options: Sequence[Option], lead: str = "") -> list[list[int]] | None:
    """For each option the tokens that can only start this option, at the end of `prompt`; None if one has none.

    An option's forms are those given and the same with a blank in front. Forms that are one token in this context
    count; an option without such a form gives the first tokens of the forms as given, behind the template's `lead`.
    A token that two options share counts for neither, nor does a form that fuses with the end of the prompt.
    """
    before = renderer.token_ids(prompt)

    def tokens_of(form: str) -> list[int]:
        whole = renderer.token_ids(prompt + form)
        return whole[len(before) :] if whole[: len(before)] == before else []

    found: list[set[int]] = []
    for option in options:
        variants = {form for given in option for form in (given, given if given.startswith(" ") else f" {given}")}
        single = {tail[0] for tail in map(tokens_of, sorted(variants)) if len(tail) == 1}
        found.append(single or {tail[0] for tail in (tokens_of(lead + form) for form in option) if tail})
    unique = [
        sorted(own - set().union(*(other for j, other in enumerate(found) if j != i))) for i, own in enumerate(found)
    ]
    return unique if all(unique) else None


def choice_from_logits(logits: Tensor, tokens: Sequence[Sequence[int]]) -> Choice:
    """Softmax over the whole vocabulary in float32, summed over each option's tokens, then over the options only.

    `logits` has shape (vocab,); `tokens[i]` are the token ids of option i.
    """
    return choice_from_logps(option_logps(logits.float(), tokens))


def option_logps(logits: Tensor, tokens: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of each option, of which `tokens[i]` are the token ids, in the type of `logits` (vocab,)."""
    logps = torch.log_softmax(logits, dim=-1)
    return [float(torch.logsumexp(logps[list(ids)], 0)) for ids in tokens]


def choice_from_logps(logps: Sequence[float]) -> Choice:
    """The choice among options whose log-probabilities are known. Stable also where all of them underflow."""
    total = torch.logsumexp(torch.tensor(logps, dtype=torch.float64), 0)
    probabilities = torch.softmax(torch.tensor(logps, dtype=torch.float64), 0).tolist()
    return Choice(tuple(probabilities), min(1.0, float(total.exp())))
