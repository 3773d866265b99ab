"""A chat as the model is given it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmalign.lm.processing import TEXT_ONLY, Group
from mmalign.types import Chat, Clip, Media


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A rendered chat: text, media, length in tokens, and the white space the template puts before an answer.

    Prompts with equal `group` can share a batch.
    """

    chat: Chat
    text: str
    media: tuple[Media, ...]
    num_tokens: int
    lead: str
    group: Group = TEXT_ONLY

    @property
    def key(self) -> tuple[str, tuple[Any, ...]]:
        """Equal for equal prompts about the very same picture objects, as long as one of them is alive."""
        return self.text, tuple(
            (*map(id, part.images), part.times) if isinstance(part, Clip) else id(part.image) for part in self.media
        )
