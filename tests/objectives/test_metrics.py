"""Every objective logs what a person watches: margins, accuracies, and the log-probs of both texts and their change."""

from __future__ import annotations

import pytest
import torch

from mmalign.objectives import OBJECTIVES, Completions, LossInputs
from mmalign.objectives.policy import GRPO, P3O
from tests.objectives.rooms import room

#: A regression on attributes of single answers, and a policy gradient with two turns of rewards: nothing is ranked.
UNRANKED = {"helpsteer", "score"}


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - UNRANKED))
def test_both_sides_are_watched(name: str) -> None:
    objective = OBJECTIVES[name]()
    needs = objective.needs
    found = set(objective(room(objective, 0).inputs).metrics)
    scored = any(need.startswith("head:") for need in needs) and "reference" not in needs
    if "side:answers" in needs or {"chosen", "rejected"} <= needs:
        assert "accuracy" in found
    if name == "sami" or scored:
        return
    if "side:answers" in needs or name == "p3o":
        wanted = {f"{end}_logps_change" for end in ("best", "worst")} if _starts_known(needs) else {"best_logps"}
        assert found >= {"margin", *wanted}
        return
    texts = [side for side in ("chosen", "rejected") if side in needs]
    assert found >= {f"{side}_logps" for side in texts}
    if "reference" in needs:
        assert found >= {f"{side}_logps_change" for side in texts}
    if len(texts) == 2:
        assert "margin" in found


def _starts_known(needs: frozenset[str]) -> bool:
    return bool({"reference:answers", "reference", "tokens:old_logps"} & needs)


def _answers(logps: list[float], old: list[float]) -> Completions:
    """One pair's answers of one token each, as (1, K, 1)."""
    shaped = (torch.tensor(values)[None, :, None] for values in (logps, old))
    now, then = shaped
    return Completions(token_logps=now, mask=torch.ones_like(now).bool(), token_values={"old_logps": then})


def test_a_policy_gradient_tells_how_far_its_best_and_worst_answers_moved() -> None:
    answers = _answers([-1.0, -4.0, -3.0], [-3.0, -2.0, -3.5])
    inputs = LossInputs(
        sides={"answers": answers}, p=torch.ones(1), values={"rewards": torch.tensor([[0.0, 2.0, 1.0]])}
    )
    metrics = GRPO()(inputs).metrics
    assert metrics["best_logps_change"].item() == -2.0  # the answer with reward 2
    assert metrics["worst_logps_change"].item() == 2.0
    assert metrics["margin"].item() == -4.0
    assert metrics["accuracy"].item() == 0.0  # 2 above 1 above 0 by reward, just the reverse by change


@pytest.mark.parametrize(("first", "second"), [(2.0, 1.0), (1.0, 2.0)])
def test_the_better_of_two_sampled_answers_is_that_of_the_higher_reward(first: float, second: float) -> None:
    one, other = (_answers([now], [-2.0]) for now in (-1.0, -5.0))
    sides = {"chosen": _squeezed(one), "rejected": _squeezed(other)}
    values = {"chosen_reward": torch.tensor([first]), "rejected_reward": torch.tensor([second])}
    metrics = P3O(beta=0.0)(LossInputs(sides=sides, p=torch.ones(1), values=values)).metrics
    best, worst = (1.0, -3.0) if first > second else (-3.0, 1.0)
    assert metrics["best_logps_change"].item() == best
    assert metrics["worst_logps_change"].item() == worst
    assert metrics["accuracy"].item() == float(first > second)


def _squeezed(answers: Completions) -> Completions:
    values = {name: value[:, 0] for name, value in answers.token_values.items()}
    return Completions(token_logps=answers.token_logps[:, 0], mask=answers.mask[:, 0], token_values=values)
