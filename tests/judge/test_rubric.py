from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.judge.rubric import CRITERIA, Scored, best_and_worst, read_scores, request, scores
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.types import Chat, Completion, Sample, Sampling


def written(*values: object) -> str:
    return json.dumps(dict(zip(CRITERIA, values, strict=True)))


def test_the_mean_of_four_scores() -> None:
    assert read_scores(written(5, 4, 3, 2)) == 3.5
    assert read_scores(f"Here it is: ```json\n{written(1, 1.5, 5, 5)}\n``` Good?") == 3.125


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "{}",
        "{relevance: 5}",
        written(0.9, 4, 3, 2),
        written(5.1, 4, 3, 2),
        written("5", 4, 3, 2),
        written(True, 4, 3, 2),
        written(None, 4, 3, 2),
        '{"relevance": 5, "accuracy": 5, "clarity": 5}',
        '{"relevance": NaN, "accuracy": 5, "temporal_grounding": 5, "clarity": 5}',
        '{"relevance": 5, "accuracy": 5, "temporal_grounding": 5, "clarity": NaN}',
        '{"relevance": 5, "accuracy": 5, "temporal_grounding": 5, "clarity": Infinity}',
        written(5, 4, 3, 10**400),
    ],
)
def test_scores_that_cannot_be_read_are_none(text: str) -> None:
    assert read_scores(text) is None


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert read_scores(text) is None or 1 <= (read_scores(text) or 0) <= 5


async def test_only_unreadable_scores_are_asked_again_and_their_median_counts() -> None:
    again = iter((written(5, 5, 5, 5), "no", written(1, 1, 1, 1), "x", "y", "z"))

    def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
        if sampling.temperature > 0:
            return next(again)
        return written(2, 2, 2, 2) if chat.prompt == "a" else "unreadable"

    lm = ScriptedLM(answer)
    sample = Sample("s")
    found = await scores([sample.ask(name) for name in ("a", "b", "c")], SampleLM(lm, sample_id="s"))
    assert found == [2.0, 3.0, None]  # the median of 5 and 1; a score that cannot be read is none
    assert lm.calls["generate"] == 3 + 2 * 3


def test_the_request_holds_caption_question_and_answer() -> None:
    prompt = request(Sample("s"), "A {man}.", "Who?", "He.").prompt
    assert prompt.startswith("Caption: A {man}.\nQuestion: Who?\nAnswer: He.\nScore the answer from 1 (worst) to 5")


def scored(*entries: tuple[float, float]) -> list[Scored]:
    return [Scored(score, temperature, Completion(f"{score} at {temperature}")) for score, temperature in entries]


def test_of_equal_scores_the_cooler_is_better_and_the_warmer_worse() -> None:
    ends = best_and_worst(scored((4, 0.3), (5, 0.9), (5, 0.5), (2, 0.7), (2, 1.0)), 1.0)
    assert ends is not None
    assert [(end.score, end.temperature) for end in ends] == [(5, 0.5), (2, 1.0)]
    assert ends[0].judgement.reason == "at temperature 0.5"


@pytest.mark.parametrize(("low", "apart"), [(4.0, True), (4.25, False), (5.0, False)])
def test_the_gap_at_its_boundary(low: float, apart: bool) -> None:
    assert (best_and_worst(scored((5, 0.3), (low, 0.5)), 1.0) is not None) is apart


def test_fewer_than_two_answers_are_no_pair() -> None:
    assert best_and_worst([], 1.0) is None
    assert best_and_worst(scored((5, 0.3)), 1.0) is None
