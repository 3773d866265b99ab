"""An answer of the model's own that can stand where a reference answer is wanted."""

from __future__ import annotations

from dataclasses import replace

from mmalign.errors import NoPair
from mmalign.judge.sentences import stands_by
from mmalign.lm.bound import SampleLM
from mmalign.types import Completion, Sample, Sampling


async def own_answer(sample: Sample, question: str, lm: SampleLM, drawn: Sampling, *, tries: int) -> Completion:
    """The first of `tries` answers of which the model affirms every sentence by yes or no, at least one.

    The first one is greedy, the others are drawn by `drawn`; with `tries` 0 the greedy one is taken unasked. Raises
    NoPair where there is none, and for an answer that is empty or cut off. An answer without a sentence that states
    something ("Why?") is affirmed in nothing.
    """
    for number in range(max(tries, 1)):
        sampling = drawn if number else replace(drawn, temperature=0.0)
        answer = usable(await lm.generate(sample.ask(question), sampling), "reference")
        if not tries:
            return answer
        belief = (await stands_by(sample, answer.text, lm)).value
        if belief is not None and belief > 0.5:
            return answer
    raise NoPair("the model affirms none of its own references sentence by sentence")


def usable(written: Completion, what: str) -> Completion:
    """The text itself; raises NoPair where there is none, or only a beginning."""
    if not written.text.strip():
        raise NoPair(f"the {what} is empty")
    if written.finish == "length":
        raise NoPair(f"the {what} was cut off at the token limit")
    return written
