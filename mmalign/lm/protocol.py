"""The model behind three verbs. Backends know chats and tokens; they know nothing of samples, pairs or methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmalign.types import Chat, Choice, Completion, Sampling, TokenLogps

#: Surface forms of one option; their probabilities add up ("Yes", "yes", " yes").
Option = Sequence[str]

YES_NO: tuple[Option, Option] = (("yes", "Yes", "YES"), ("no", "No", "NO"))


class LM(Protocol):
    """A model that answers many requests at once; what is asked at the same time runs in full batches.

    `name` identifies the weights in provenance and caches. Every verb raises SampleError for a request that this model
    cannot take (too long, media it has no input for), and ModelError when the model itself fails.
    """

    name: str

    async def generate(self, chat: Chat, sampling: Sampling, *, seed: int) -> Completion:
        """One answer. The same chat, sampling and seed give the same answer whatever else is in the batch."""

    async def score(self, chat: Chat, texts: Sequence[str]) -> list[TokenLogps]:
        """Log-probabilities of each text as the assistant's whole answer, end of turn included."""

    async def choose(self, chat: Chat, options: Sequence[Option]) -> Choice:
        """Next-token probabilities of the options at the start of the answer (judges.md, LOGIT evidence)."""

    async def close(self) -> None:
        """Release the model; requests still waiting fail with ModelError."""
