"""What runs next: jobs that wait for the model, and the choice of the batch that wastes least of it.

Pure and single-threaded; `local` brings the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmalign.lm.processing import Group
from mmalign.lm.prompt import Prompt
from mmalign.types import Sampling

Verb = Literal["logits", "score", "generate"]
#: Short work first: it lets samples go on, so that more of them ask for the long work together.
_ORDER: dict[str, int] = {"logits": 0, "score": 1, "generate": 2}
#: A job that has been passed over this many times is run next, whatever else waits.
PATIENCE = 16


@dataclass(slots=True, eq=False)
class Job:
    """One row of a future batch, and everyone who waits for its result.

    `new_tokens` is how many tokens the row may grow by (generate) or has behind its prompt (score). Only rows of one
    `zone` share a batch.
    """

    verb: Verb
    prompt: Prompt
    new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    answer: str = ""
    zone: int = 0
    receivers: list[Callable[[Any], None]] = field(default_factory=list)
    is_wanted: list[Callable[[], bool]] = field(default_factory=list)
    passed_over: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for jobs with equal results. Greedy answers do not depend on the seed."""
        if self.verb == "generate":
            return self.verb, self.prompt.key, self.sampling, self.seed if self.sampling.temperature > 0 else None
        return self.verb, self.prompt.key, self.answer

    @property
    def media(self) -> tuple[Any, ...]:
        """Equal for jobs about the same media."""
        return self.prompt.key[1]

    @property
    def num_tokens(self) -> int:
        return self.prompt.num_tokens + self.new_tokens

    @property
    def wanted(self) -> bool:
        return any(wanted() for wanted in self.is_wanted)

    def finish(self, result: Any) -> None:
        """Hand `result`, which may be an exception, to everyone who waits."""
        for receive in self.receivers:
            receive(result)


def is_full(pending: Sequence[Job], max_rows: int) -> bool:
    """Whether some group of jobs fills a batch, so that waiting for more would gain nothing."""
    return any(len(group) >= max_rows for group in _groups(pending).values())


def next_batch(pending: Sequence[Job], max_rows: int, max_tokens: int, max_logits_rows: int) -> list[Job]:
    """Jobs to run together, out of `pending` (oldest first, not empty).

    A batch is of one verb and one zone, and of media that fit together (`Prompt.group`). A group that fills a batch
    goes first, else short work goes before long, else the older one. Within the group jobs are sorted by length, those
    about the same media side by side where they can share them, and the batch is the stretch around the oldest job, cut
    to `max_tokens` padded tokens; for scores also to `max_logits_rows` answer tokens, whose logits exist at the same
    time. One job alone is always let through.
    """
    groups = _groups(pending)

    def urgency(group: list[Job]) -> tuple[bool, bool, int]:
        is_late = any(job.passed_over >= PATIENCE for job in group)
        return not is_late, len(group) < max_rows, _ORDER[group[0].verb]

    group = min(groups.values(), key=urgency)  # min keeps the first, and groups are in order of their oldest job
    oldest = group[0]
    ranked = _ranked(group)
    place = next(i for i, job in enumerate(ranked) if job is oldest)
    start = max(0, min(place - place % max_rows, len(ranked) - max_rows))
    batch = ranked[start : start + max_rows]
    while len(batch) > 1 and not _fits(batch, max_tokens, max_logits_rows):
        # Long rows cost most; but the oldest job stays, or it might never run.
        batch.remove(batch[-1] if batch[-1] is not oldest else batch[0])
    taken = set(map(id, batch))
    for job in pending:
        job.passed_over += id(job) not in taken
    return batch


def _ranked(group: Sequence[Job]) -> list[Job]:
    """Jobs of one group, so that those that make a good batch are neighbours."""
    if group[0].verb == "generate":
        return sorted(group, key=lambda job: (job.sampling.max_new_tokens, job.num_tokens, job.prompt.text))
    first: dict[tuple[Any, ...], int] = {}
    longest: dict[tuple[Any, ...], int] = {}
    for number, job in enumerate(group):
        first.setdefault(job.media, number)
        longest[job.media] = max(longest.get(job.media, 0), job.num_tokens)

    def place(job: Job) -> tuple[int, int, int, str]:
        if not job.media:
            return job.num_tokens, 0, 0, job.prompt.text
        return longest[job.media], first[job.media], job.num_tokens, job.prompt.text

    return sorted(group, key=place)


def _groups(pending: Sequence[Job]) -> dict[tuple[Verb, Group, int], list[Job]]:
    groups: dict[tuple[Verb, Group, int], list[Job]] = {}
    for job in pending:
        groups.setdefault((job.verb, job.prompt.group, job.zone), []).append(job)
    return groups


def _fits(batch: Sequence[Job], max_tokens: int, max_logits_rows: int) -> bool:
    longest = max(job.prompt.num_tokens for job in batch) + max(job.new_tokens for job in batch)
    if batch[0].verb == "score" and sum(job.new_tokens for job in batch) > max_logits_rows:
        return False
    return len(batch) * longest <= max_tokens
