"""The worked numbers of the method's specification (section 9, 1 to 3), and what surrounds them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.judge.claims import Claim
from mmalign.judge.length import balanced, shortening
from mmalign.judge.verdict import Label, Score, Verdict, reason, score, verdict
from mmalign.pairs import PairRow
from mmalign.types import Choice


def claim(expected: str = "yes", text: str = "a kite") -> Claim:
    return Claim(text, 0, len(text), f"Is there {text}?", "no" if expected == "no" else "yes")


def judged(values: list[float], band: float) -> list[Verdict]:
    return [verdict(claim(text=f"thing {i}"), Choice((p, 1 - p), 1.0), band=band) for i, p in enumerate(values)]


A, B = [0.9, 0.8, 0.3, 0.95], [0.9, 0.2, 0.3]


def test_p_yes_of_logits() -> None:
    yes, no = math.exp(2.0) + math.exp(1.5), math.exp(1.0) + math.exp(0.0)
    choice = Choice((yes / (yes + no), no / (yes + no)), 1.0)
    assert verdict(claim(), choice).p_yes == pytest.approx(0.76148, abs=5e-6)


def test_scores_without_a_band() -> None:
    a, b = judged(A, 0.0), judged(B, 0.0)
    assert (score(a), score(b)) == (-1.0, -2.0)
    assert (score(a, "rate"), score(b, "rate")) == (0.75, pytest.approx(1 / 3))
    assert (score(a, "soft"), score(b, "soft")) == (pytest.approx(-1.05), pytest.approx(-1.60))
    assert (score(a, "min_logp"), score(b, "min_logp")) == (pytest.approx(math.log(0.3)), pytest.approx(math.log(0.2)))


def test_scores_with_a_wide_band() -> None:
    a, b = judged(A, 0.25), judged(B, 0.25)
    assert [v.label for v in a].count("ignored") == 1
    assert (score(a), score(b)) == (0.0, -1.0)
    assert (sum(v.label != "ignored" for v in a), sum(v.label != "ignored" for v in b)) == (3, 2)


@pytest.mark.parametrize(
    ("p_yes", "expected", "label"),
    [
        (0.61, "yes", "consistent"),
        (0.6, "yes", "ignored"),
        (0.4, "yes", "ignored"),
        (0.39, "yes", "inconsistent"),
        (0.61, "no", "inconsistent"),
        (0.39, "no", "consistent"),
    ],
)
def test_labels_at_the_edges_of_the_band(p_yes: float, expected: str, label: Label) -> None:
    assert verdict(claim(expected), Choice((p_yes, 1 - p_yes), 1.0)).label == label


@pytest.mark.parametrize(("mass", "valid"), [(0.1, True), (0.0999, False), (0.0, False), (math.nan, False)])
def test_an_answer_that_is_neither_yes_nor_no_is_invalid(mass: float, valid: bool) -> None:
    given_verdict = verdict(claim(), Choice((0.01, 0.99), mass))
    assert (given_verdict.label != "invalid") == valid
    assert (given_verdict.to_row()["p_yes"] is not None) == valid


@pytest.mark.parametrize("kind", ["count", "rate", "soft", "min_logp"])
def test_nothing_judged_is_no_score(kind: Score) -> None:
    invalid = verdict(claim(), Choice((0.9, 0.1), 0.01))
    ignored = verdict(claim(), Choice((0.5, 0.5), 1.0))
    assert score([], kind) is None
    assert score([invalid, ignored], kind) is None
    assert score([invalid, *judged([0.9], 0.1)], kind) == score(judged([0.9], 0.1), kind)


def test_misses_cost_their_penalty_in_every_mode() -> None:
    for kind in ("count", "rate", "soft", "min_logp"):
        plain = score(judged(A, 0.0), kind)  # type: ignore[arg-type]
        assert plain is not None
        assert score(judged(A, 0.0), kind, missing=2, miss_penalty=1.5) == plain - 3.0  # type: ignore[arg-type]


def test_certain_denial_stays_a_finite_number() -> None:
    value = score(judged([0.0], 0.1), "min_logp")
    assert value is not None
    assert value == pytest.approx(math.log(1e-6))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 0.45))
def test_more_agreement_never_scores_lower(values: list[float], band: float) -> None:
    better = [max(values[0], 0.99), *values[1:]]
    for kind in ("count", "rate", "soft", "min_logp"):
        low, high = (score(judged(each, band), kind) for each in (values, better))  # type: ignore[arg-type]
        assert low is None or (high is not None and high >= low - 1e-12)


def test_the_reason_names_what_was_denied_affirmed_and_left_out() -> None:
    verdicts = [
        verdict(claim(), Choice((0.03, 0.97), 1.0)),
        verdict(claim("no", "people"), Choice((0.9, 0.1), 1.0)),
        verdict(claim(text="a dog"), Choice((0.9, 0.1), 1.0)),
    ]
    assert reason(verdicts, ["boat"]) == (
        "denied by the model: 'a kite' P(yes)=0.03; affirmed by the model: 'people' P(yes)=0.90; "
        "leaves out what the model lists: boat"
    )
    assert reason(verdicts[2:]) == "the model agrees with all 1 of its claims"


def row(chosen: int, rejected: int) -> PairRow:
    return PairRow(id="i", sample_id="s", method="m", context=[], chosen="w " * chosen, rejected="w " * rejected)


def test_shortening_of_forty_against_sixty_words() -> None:
    assert shortening("w " * 40, "w " * 60) == pytest.approx(0.3333, abs=5e-5)
    longer = [row(50, 40), row(50, 46)]
    assert len(balanced([row(40, 60), *longer])) == 3  # r = .34 keeps it: 140 words against 146
    assert len(balanced([row(10, 60), *longer])) == 2  # it would tip the balance


def test_balance_equals_a_search_by_hand() -> None:
    rows = [row(c, r) for c, r in ((40, 60), (50, 48), (30, 33), (20, 20), (10, 80), (45, 40))]

    def imbalance(r: float) -> float:
        kept = [x for x in rows if shortening(x.chosen, x.rejected) <= r]
        words = [(len(x.chosen.split()), len(x.rejected.split())) for x in kept]
        return abs(sum(c for c, _ in words) - sum(r for _, r in words)) / sum(r for _, r in words)

    kept = balanced(rows)
    used = kept[0].provenance["length_guard"]
    grid = [step / 50 for step in range(50)]
    assert imbalance(used) == min(map(imbalance, grid))
    assert used == max(r for r in grid if imbalance(r) == min(map(imbalance, grid)))
    assert [x.chosen for x in kept] == [x.chosen for x in rows if shortening(x.chosen, x.rejected) <= used]


def test_empty_texts_and_empty_tables() -> None:
    assert balanced([]) == []
    assert balanced([row(0, 5), row(5, 0)]) == []
    assert len(balanced([row(5, 5), row(5, 0)])) == 1


def test_only_shortening_pairs_are_not_all_lost() -> None:
    assert len(balanced([row(5, 10), row(9, 10)])) == 1
