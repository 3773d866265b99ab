"""Memory that runs out and numbers that are none: one line with the pairs, their size and what to change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import DPO, LossInputs, LossOutput, Need, Objective
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator
from mmalign.train.distributed.ranks import Ranks
from mmalign.train.failures import memory_named
from mmalign.train.forward import Forward
from mmalign.train.sharing import Trial
from tests.lm.test_memory import ERRORS
from tests.models import tiny
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, trainer
from tests.train.test_resume import Stopping


@dataclass(frozen=True, kw_only=True)
class Failing:
    """DPO that raises, forward or backward, where a batch holds a pair with weight in its label `p`."""

    name: ClassVar[str] = "dpo"
    error: Callable[[], BaseException]
    backward: bool = False
    whole: bool = False
    inner: Objective = field(default_factory=DPO)

    @property
    def needs(self) -> frozenset[Need]:
        return self.inner.needs | ({"whole_step"} if self.whole else set())

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        output = self.inner(inputs)
        if (inputs.p < 1).any():
            if not self.backward:
                raise self.error()
            output.loss.register_hook(self._fail)
        return output

    def _fail(self, _: Tensor) -> None:
        raise self.error()


@pytest.mark.parametrize("make", ERRORS)
@pytest.mark.parametrize("backward", [False, True])
def test_memory_that_runs_out_names_the_pairs(
    make: Callable[[], BaseException], backward: bool, tmp_path: Path
) -> None:
    rows = make_rows(tmp_path, 4)
    rows[2] = replace(rows[2], p=0.9)
    with pytest.raises(TrainError) as caught:
        trainer(tmp_path, rows, quick(batch_size=4, micro_batch_size=1), Failing(error=make, backward=backward)).train()
    text = str(caught.value)
    where = "the backward pass" if backward else "the forward"
    assert f" in {where} of pair s2#0.0 (" in text
    assert "tokens at once" in text
    assert "\n" not in text
    assert "train.micro_batch_size" not in text, "it is 1 already"
    assert "set train.gradient_checkpointing: true, and the same run goes on; or, in a new run, lower" in text
    asked = "llocate" in str(make())
    assert (" more were asked for)" in text) == asked


def test_sizes_are_those_of_the_batch(tmp_path: Path) -> None:
    rows = [replace(row, p=0.9) for row in make_rows(tmp_path, 2)]
    made = trainer(
        tmp_path, rows, quick(batch_size=2, shared_prefix="off", vision_once="off"), Failing(error=ERRORS[0])
    )
    batch = made._collate(rows)
    one, two = (int(batch.lengths[:, place].max()) for place in (0, 1))
    whole, image = batch.inputs["input_ids"], made._collate.renderer.media_ids
    media = int(sum((whole == number).sum() for number in set(image)))
    assert media > 8
    with pytest.raises(TrainError) as caught:
        made.train()
    sizes = {f"s0#0.0 ({one:,} tokens)", f"s1#0.0 ({two:,} tokens)"}
    assert all(size in str(caught.value) for size in sizes)
    assert f": {len(whole)} x {whole.shape[1]:,} tokens at once, {media} of them media; lower" in str(caught.value)
    assert "memory ran out (20.00 MiB more were asked for) in the forward of pair s" in str(caught.value)


@pytest.mark.parametrize(
    ("pictures", "changes", "advice"),
    [
        (
            0,
            {},
            "lower train.micro_batch_size (2) or set train.gradient_checkpointing: true, and the same run goes on; or, "
            "in a new run, lower train.max_length (2048), or set train.precision: bf16",
        ),
        (
            1,
            {"gradient_checkpointing": True},
            "lower train.micro_batch_size (2), and the same run goes on; or, in a new run, lower train.max_length "
            "(2048) or data.max_side, or set train.precision: bf16",
        ),
        (
            1,
            {"gradient_checkpointing": True, "micro_batch_size": 1, "precision": "bf16", "max_length": None},
            "media; in a new run, lower train.max_length (none) or data.max_side",
        ),
    ],
)
def test_the_advice_fits_the_run(pictures: int, changes: dict[str, Any], advice: str, tmp_path: Path) -> None:
    rows = [replace(row, p=0.9) for row in make_rows(tmp_path, 2, pictures=pictures)]
    with pytest.raises(TrainError) as caught:
        trainer(tmp_path, rows, quick(**{"micro_batch_size": 2, **changes}), Failing(error=ERRORS[0])).train()
    assert str(caught.value).endswith(advice)


def test_a_whole_step_takes_fewer_pairs_a_step(tmp_path: Path) -> None:
    rows = [replace(row, p=0.9) for row in make_rows(tmp_path, 2, pictures=0)]
    config, objective = quick(batch_size=2, gradient_checkpointing=True), Failing(error=ERRORS[0], whole=True)
    with pytest.raises(TrainError) as caught:
        trainer(tmp_path, rows, config, objective).train()
    assert "; in a new run, lower train.batch_size (2) or train.max_length (2048)" in str(caught.value)
    assert "micro_batch_size" not in str(caught.value), "it has no say in how many pairs are computed at once"


def test_clips_can_have_fewer_and_smaller_frames(tmp_path: Path) -> None:
    [row] = make_rows(tmp_path, 1, pictures=0)
    renderer = Renderer(tiny("llama").processor)
    batch = Collator(renderer, tmp_path, MediaLimits())([row])
    film = replace(row, context=[{"role": "user", "content": [{"type": "video", "path": "a.mkv", "sha256": "0"}]}])
    with pytest.raises(
        TrainError, match=r"lower train.max_length \(2048\) or data.num_frames or data.max_frame_side, or"
    ):
        _run_out(memory_named("the forward", [film], quick(), renderer, batch))


def _run_out(block: AbstractContextManager[None]) -> None:
    with block:
        raise MemoryError


def test_the_check_before_training_names_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise ERRORS[0]()

    monkeypatch.setattr(Trial, "_logps", full)
    with pytest.raises(TrainError, match=r"in the check before training of pair s0#0\.0 \(\d+ tokens\), s1#0\.0 \("):
        trainer(tmp_path, make_rows(tmp_path, 2), quick()).train()


def test_the_same_run_does_go_on_with_what_is_advised(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    config = quick(batch_size=2, epochs=2, checkpoint_every_steps=1, lora=LoraConfig(dropout=0.2))
    trainer(tmp_path, rows, config, Stopping(calls=[]), run="whole").train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, rows, config, Stopping(calls=[], at=4)).train()
    calls: list[int] = []
    smaller = replace(config, gradient_checkpointing=True)
    trainer(tmp_path, rows, smaller, Stopping(calls=calls)).train()
    assert len(calls) == 3
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)


def test_the_reference_pass_names_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(tmp_path, 3)

    def full(model: Any, batch: Any) -> Any:
        raise ERRORS[0]() if batch.ids == ("s1#0.0",) else AssertionError("out of turn")

    monkeypatch.setattr(Forward, "reference", lambda self, model, batch: full(model, batch))
    rows[0], rows[1] = rows[1], rows[0]
    with pytest.raises(TrainError, match=r"in the reference pass of pair s1#0\.0 \(\d+ tokens\)"):
        trainer(tmp_path, rows, quick(batch_size=2, micro_batch_size=1)).train()


@pytest.mark.parametrize(
    ("lora", "advice"),
    [(LoraConfig(rank=3), r"lower train.lora.rank \(3\)"), (None, "set train.lora")],
)
def test_the_optimizer_asks_for_fewer_weights(
    lora: LoraConfig | None, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ERRORS[1]()

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(TrainError, match=rf"in the optimizer's step of pair s.*; train fewer weights \({advice}\)"):
        trainer(tmp_path, make_rows(tmp_path, 2), quick(lora=lora)).train()


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    rows = [replace(row, p=0.9) for row in make_rows(tmp_path, 2)]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer(tmp_path, rows, quick(), Failing(error=lambda: RuntimeError("shape mismatch"), backward=True)).train()


# Numbers that are none -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A loss that is no number, or has a gradient that is none, for pairs whose label `p` says so."""

    name: ClassVar[str] = "broken"
    in_gradient: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(("chosen",))

    def __call__(self, inputs: LossInputs, /) -> LossOutput:
        loss = inputs.chosen.token_logps.sum(-1)
        if self.in_gradient:
            # Others must not meet the root of 0, whose gradient times 0 is none either.
            zero = torch.where(inputs.p < 1, loss - loss.detach(), 1.0)
            return LossOutput(loss=torch.where(inputs.p < 1, zero.abs().sqrt(), loss))
        return LossOutput(loss=torch.where(inputs.p < 1, torch.nan, loss))


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_only_the_guilty_pairs_are_named(in_gradient: bool, micro: int, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    rows[1], rows[4] = replace(rows[1], p=0.9), replace(rows[4], p=0.9)
    loaded = tiny("qwen3-vl")
    made = trainer(
        tmp_path, rows, quick(batch_size=6, micro_batch_size=micro), Broken(in_gradient=in_gradient), loaded=loaded
    )
    before = {name: value.clone() for name, value in made.model.named_parameters() if value.requires_grad}
    with pytest.raises(TrainError) as caught:
        made.train()
    what = "gradient of pair" if in_gradient else "loss is not finite at pair"
    named = str(caught.value).partition(what)[2]
    assert {f"s{index}#0.0" for index in range(6) if f"s{index}#0.0" in named} == {"s1#0.0", "s4#0.0"}
    assert curve(tmp_path) == []
    for name, value in made.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_pairs_that_are_too_much_together_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, make_rows(tmp_path, 2), quick(batch_size=2))
    monkeypatch.setattr(Ranks, "step", lambda *_: float("inf"))
    with pytest.raises(
        TrainError, match=r"gradient of the pairs s\d#0\.0, s\d#0\.0 together, though of none alone, is"
    ):
        made.train()
