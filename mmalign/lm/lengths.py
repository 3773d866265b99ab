"""How long a prompt is with its pictures and clips expanded, without processing any of them twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mmalign.lm.clips import metadata
from mmalign.types import Clip, Media

#: Measured lengths of media that are kept.
_MAX_MEASURED = 4096


class Lengths:
    """Lengths of prompts in tokens.

    Args:
        marks: the placeholders of media.
        token_ids: tokens of a text.
        expansions: what the processor writes for media, as (placeholder, text in its place); None where it cannot tell.
        grown: by how many tokens a prompt about media grows as they are expanded.
    """

    def __init__(
        self,
        marks: Sequence[str],
        token_ids: Callable[[str], list[int]],
        expansions: Callable[[Sequence[Media]], list[tuple[str, str]] | None],
        grown: Callable[[Sequence[Media]], int],
    ) -> None:
        self._marks, self._token_ids, self._expansions, self._grown = marks, token_ids, expansions, grown
        self._measured: dict[tuple[Any, ...], list[tuple[str, str, int]] | int] = {}

    def num_tokens(self, prompt: str, media: Sequence[Media]) -> int:
        """Tokens of a prompt and its media. Raises ValueError when it does not have one place for each of them."""
        if not media:
            return len(self._token_ids(prompt))
        key = tuple(_shape(part) for part in media)
        if key not in self._measured:
            if len(self._measured) >= _MAX_MEASURED:
                self._measured.clear()
            self._measured[key] = self._measure(media)
        found = self._measured[key]
        if isinstance(found, int):
            return len(self._token_ids(prompt)) + found
        num_places = sum(prompt.count(mark) for mark in {mark for mark, _, _ in found})
        if num_places != len(found):
            raise ValueError(f"the prompt has {num_places} places for {len(found)} pictures or videos")
        extra, begin, pieces = 0, 0, []
        for mark, written, more in found:
            end = prompt.index(mark, begin)
            pieces += [prompt[begin:end], written]
            begin, extra = end + len(mark), extra + more
        return len(self._token_ids("".join([*pieces, prompt[begin:]]))) + extra

    def _measure(self, media: Sequence[Media]) -> list[tuple[str, str, int]] | int:
        """For each placeholder: itself, the text in its place with runs of marks as one, and the marks left out.

        For a processor that does not tell its text: by how many tokens a prompt grows.
        """
        written = self._expansions(media)
        if written is None:
            return self._grown(media)
        runs = re.compile(f"({'|'.join(map(re.escape, self._marks))})\\1+")
        found = []
        for mark, text in written:
            short = runs.sub(r"\1", text)
            found.append((mark, short, sum(text.count(other) - short.count(other) for other in self._marks)))
        return found


def _shape(part: Media) -> tuple[Any, ...]:
    """What the number of tokens of a medium depends on."""
    if isinstance(part, Clip):
        return part.images[0].size, part.times, metadata(part)["duration"]
    return (part.image.size,)
