"""Reward models: a head learns what is to be preferred, is saved, and says the same when it is loaded."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from mmalign.errors import TrainError
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.spec import ModelSpec
from mmalign.objectives import LossInputs, LossOutput, Objective, Sum
from mmalign.objectives.heads import fitted
from mmalign.objectives.reward import PAL, ArmoRM, BradleyTerry, HelpSteer, StrengthRM
from mmalign.objectives.sft import SFT
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow
from mmalign.train.config import LoraConfig
from mmalign.train.reward.scoring import score_rows
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.by_hand import numbers, told
from tests.train.every import rows_for
from tests.train.rows import make_rows, quick
from tests.train.runs import curve, trainer

WORDS = ("fish", "boat", "tree", "crab", "top", "left", "small", "big", "picture", "colour")


def fishy(count: int, seed: int) -> list[PairRow]:
    """Pairs whose chosen text says red somewhere amid other words, where the rejected one says blue."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        colours = {"chosen": "red", "rejected": "blue"}
        texts = {}
        for side, colour in colours.items():
            words = draw.choices(WORDS, k=draw.randint(2, 5))
            words.insert(draw.randint(0, len(words)), colour)
            texts[side] = " ".join(words)
        context = [{"role": "user", "content": [{"type": "text", "text": f"Say {draw.choice(WORDS)}."}]}]
        rows.append(PairRow(id=f"r{index}", sample_id="", method="test", context=context, **texts))
    return rows


def reloaded(root: Path, name: str) -> Loaded:
    """The model as it is loaded from disk, with the adapter of the run on top."""
    base = tiny(name)
    base.model.save_pretrained(root / "base")
    base.processor.save_pretrained(root / "base")
    return load_model(ModelSpec(name=str(root / "base"), adapter=str(root / "run" / "adapter"), device="cpu"))


def test_a_reward_model_learns_what_is_preferred(tmp_path: Path) -> None:
    config = quick(batch_size=16, micro_batch_size=16, epochs=8, learning_rate=1e-2)
    result = trainer(tmp_path, fishy(64, 0), config, BradleyTerry(), loaded=tiny("llama")).train()
    held_out = fishy(100, 1)
    scores = score_rows(reloaded(tmp_path, "llama"), result.path, held_out, tmp_path, batch_size=25)
    accuracy = (scores[:, 0] > scores[:, 1]).float().mean().item()
    assert accuracy > 0.95
    lines = curve(tmp_path)
    assert lines[-1]["loss"] < 0.3 < 0.6 < lines[0]["loss"]


@pytest.mark.parametrize(
    "objective",
    [BradleyTerry(), HelpSteer(), PAL(dimension=8), ArmoRM(width=8)],
    ids=lambda objective: objective.name,
)
def test_a_loaded_head_gives_the_scores_of_training(objective: Objective, tmp_path: Path) -> None:
    rows = rows_for(objective, tmp_path, pictures=True)
    run = trainer(tmp_path, rows, quick(epochs=2, learning_rate=3e-3), objective)
    result = run.train()
    sides = ("chosen",) if objective.name == "helpsteer" else ("chosen", "rejected")
    here = score_rows(Loaded(run.model, run.processor, ""), result.path, rows, tmp_path, sides=sides)
    there = score_rows(reloaded(tmp_path, "qwen3-vl"), result.path, rows, tmp_path, sides=sides, batch_size=3)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    assert here.shape == (4, len(sides), *([3] if objective.name == "helpsteer" else []))
    assert here.flatten(1).std(0).min() > 0
    untrained = score_rows(tiny("qwen3-vl"), result.path, rows, tmp_path, sides=sides)
    # Under a gate the model stays as it is.
    assert torch.allclose(untrained, here, atol=1e-5) == (objective.name == "armorm")


def test_a_whole_model_has_its_head_beside_it(tmp_path: Path) -> None:
    rows = rows_for(BradleyTerry(), tmp_path)
    loaded = tiny("llama")
    before = loaded.model.lm_head.weight.clone()
    run = trainer(tmp_path, rows, quick(lora=None), BradleyTerry(), loaded=loaded)
    assert not run.model.lm_head.weight.requires_grad
    result = run.train()
    assert torch.equal(run.model.lm_head.weight, before)
    found = load_model(ModelSpec(name=str(result.path), device="cpu"))
    here = score_rows(Loaded(run.model, run.processor, ""), result.path, rows, tmp_path)
    torch.testing.assert_close(score_rows(found, result.path, rows, tmp_path), here, rtol=1e-4, atol=1e-5)


def test_an_output_layer_that_is_the_embedding_is_trained(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    run = trainer(tmp_path, rows, quick(lora=None), BradleyTerry(), loaded=tiny("gemma3"))
    assert run.model.get_output_embeddings().weight.requires_grad


def test_scores_and_likelihood_in_one_sum(tmp_path: Path) -> None:
    """A sum whose parts read log-probs and scores has both, and trains all that either reads."""
    both = Sum.of((1.0, BradleyTerry()), (0.1, SFT()))
    rows = rows_for(BradleyTerry(), tmp_path)
    run = trainer(tmp_path, rows, quick(lora=None), both, loaded=tiny("llama"))
    before = run.model.lm_head.weight.clone()
    run.train()
    assert not torch.equal(run.model.lm_head.weight, before)
    assert {"nll", "chosen_score"} <= curve(tmp_path)[0].keys()


def test_attributes_are_fitted_to_all_labels(tmp_path: Path) -> None:
    """Also to those of a pair of weight 0, which has no part in the gate's loss."""
    objective, loaded = ArmoRM(width=8), tiny("llama")
    rows = rows_for(objective, tmp_path, count=8)
    rows[-1] = replace(rows[-1], weight=0.0, values={"attributes": (9.0, None, 3.0)})
    states = [told(loaded.model, loaded, row, AnswerRow(text=row.chosen), tmp_path).last for row in rows]
    labels = numbers([row.values["attributes"] for row in rows])
    run = trainer(tmp_path, rows, quick(batch_size=8), objective, loaded=tiny("llama"))
    run.train()
    assert run.reward_head is not None
    weights, penalty = fitted(torch.stack(states), labels, 2)
    torch.testing.assert_close(run.reward_head.module.get_buffer("weights"), weights, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(run.reward_head.module.get_buffer("penalty"), penalty)
    assert labels.isnan().any()


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    result = trainer(
        tmp_path, rows_for(BradleyTerry(), tmp_path), quick(), BradleyTerry(), loaded=tiny("llama")
    ).train()
    loaded = tiny("llama")
    with pytest.raises(TrainError, match="no pairs to score"):
        score_rows(loaded, result.path, [], tmp_path)
    (row,) = fishy(1, 0)
    listed = replace(row, sides={"answers": (AnswerRow(text="a"), AnswerRow(text="b"))})
    with pytest.raises(TrainError, match="one answer per side"):
        score_rows(loaded, result.path, [listed], tmp_path, sides=("answers",))


def test_a_second_view_has_another_dropout(tmp_path: Path) -> None:
    seen: list[LossInputs] = []

    @dataclass(frozen=True)
    class Watched(StrengthRM):
        def __call__(self, inputs: LossInputs, /) -> LossOutput:
            seen.append(inputs)
            return super().__call__(inputs)

    # Even texts that are all the same are computed one by one.
    rows = [replace(row, rejected=row.chosen) for row in rows_for(StrengthRM(), tmp_path)]
    config = quick(epochs=2, learning_rate=1e-2, lora=LoraConfig(dropout=0.5))
    trainer(tmp_path, rows, config, Watched(contrast=1.0), loaded=tiny("llama")).train()
    first, second = seen
    torch.testing.assert_close(first.chosen.states, first.side("chosen_view").states)  # the adapter is 0 at first
    assert (second.chosen.states - second.side("chosen_view").states).abs().amin(0).max() > 1e-3


def test_stages_with_a_head_are_refused(tmp_path: Path) -> None:
    config = quick(stages="renew")
    with pytest.raises(TrainError, match=r"renew gives every stage .* objective bradley_terry .* set it to mixed"):
        train_pairs(tiny("llama"), fishy(4, 0), BradleyTerry(), config, tmp_path, tmp_path / "run", quiet=True)
