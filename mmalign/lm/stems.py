"""Prompts that begin alike and are about the same media, such as questions about one picture or several candidates
put to one judge: what they begin with needs to be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from mmalign.lm.prompt import Prompt
from mmalign.lm.render import Renderer


@dataclass(frozen=True, slots=True)
class Stem:
    """The text that some prompts begin with, all media's places in it; `members` are their numbers, `rests` the rest.

    A prompt that shares nothing is a stem of its own without a rest.
    """

    text: str
    members: tuple[int, ...]
    rests: tuple[str, ...]


def find_stems(prompts: Sequence[Prompt], renderer: Renderer) -> list[Stem]:
    """Prompts, no two of them equal, sorted under stems.

    A stem is worth a row for all its prompts when it holds their media and none of the rests is longer than it.
    """
    order = sorted(range(len(prompts)), key=lambda number: (repr(prompts[number].key[1]), prompts[number].text))
    found: list[Stem] = []
    for _, group in groupby(order, key=lambda number: prompts[number].key[1]):
        members = tuple(group)
        if len(members) > 1 and (whole := _stem(prompts, members, renderer)) is not None:
            found.append(whole)
        else:
            found += _greedily(prompts, members, renderer)
    return found


def _greedily(prompts: Sequence[Prompt], members: Sequence[int], renderer: Renderer) -> list[Stem]:
    """Stems of neighbours, each as wide as it can be."""
    found: list[Stem] = []
    for number in members:
        wider = _stem(prompts, (*found[-1].members, number), renderer) if found else None
        if wider is None:
            found.append(Stem(prompts[number].text, (number,), ("",)))
        else:
            found[-1] = wider
    return found


def _stem(prompts: Sequence[Prompt], members: tuple[int, ...], renderer: Renderer) -> Stem | None:
    texts = [prompts[number].text for number in members]
    first, last = min(texts), max(texts)
    common = "".join(letter for letter, _ in takewhile(lambda two: two[0] == two[1], zip(first, last, strict=False)))
    if common in texts:
        common = common[:-1]  # every prompt must have something of its own: what comes behind it is asked for
    rests = tuple(text.removeprefix(common) for text in texts)
    lengths = [renderer.token_ids(rest) for rest in rests]
    if any(set(renderer.media_ids) & set(rest) for rest in lengths):
        return None
    shared = min(prompts[number].num_tokens - len(rest) for number, rest in zip(members, lengths, strict=True))
    return Stem(common, members, rests) if max(map(len, lengths)) <= shared else None
