"""Prompts that cannot fit are refused before anything slow is done with them, in time and memory of what would fit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Any

from mmalign.errors import SampleError
from mmalign.lm.marks import refuse_halves

#: Most tokens of a prompt for a model that sets no limit.
MAX_POSITIONS = 1 << 18
#: Characters that are tokenised without asking: too few to be slow.
_SMALL = 1 << 15
#: Characters that are counted at a time. A cut may split words, which makes a few tokens more.
_SLICE = 1 << 14
_MORE_BY_CUT = 16


class TextLimit:
    """Whether texts can fit into a model at all.

    A text of more characters than all positions with the vocabulary's longest token hold is refused by its length
    alone, a shorter one once the tokens of its beginning are too many.

    Args:
        tokenizer: a fast one of transformers.
        positions: tokens that the model takes; None where it sets no limit.
    """

    def __init__(self, tokenizer: Any, positions: int | None) -> None:
        self._tokenizer = tokenizer
        self.positions = positions or MAX_POSITIONS

    def refuse(self, texts: Iterable[str]) -> None:
        """Raises SampleError for texts that are too long together, or that are no Unicode text."""
        found = list(texts)
        total = sum(map(len, found))
        if total > _SMALL:
            if total > self._most_characters:
                raise SampleError(
                    f"the chat has {total:,} characters; the {self.positions:,} tokens that the model takes hold at "
                    f"most {self._most_characters:,}"
                )
            self._count(found)
        for text in found:
            refuse_halves(text)

    def _count(self, texts: Iterable[str]) -> None:
        num_tokens = 0
        for text in texts:
            for begin, end in pairwise([*range(0, len(text), _SLICE), len(text)]):
                part = text[begin:end].encode("utf-8", "replace").decode()
                ids = self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
                num_tokens += max(0, len(ids) - _MORE_BY_CUT)
                if num_tokens > self.positions:
                    raise SampleError(
                        f"the chat has more than {self.positions:,} tokens in its first {begin + len(part):,} "
                        f"characters, the model takes no more than {self.positions:,}"
                    )

    @cached_property
    def _most_characters(self) -> int:
        return self.positions * max(map(len, self._tokenizer.get_vocab()))
