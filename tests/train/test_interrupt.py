"""Ctrl-C, SIGTERM and kill -9 in training: nothing is lost, nobody hangs, and the run goes on to the same end."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import Tensor, distributed

from mmalign.errors import Interrupted
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train import interrupt
from mmalign.train.cache.keys import row_key
from mmalign.train.cache.parts import Parts
from mmalign.train.cache.reference import FirstPass
from mmalign.train.config import LoraConfig, TrainConfig
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.interrupt import Stop, stop_on_signals
from mmalign.train.stages import train_pairs
from tests.models import tiny
from tests.train.children import Child, Waiting, let_go, meet, ranks, when_met
from tests.train.rows import make_rows, quick
from tests.train.runs import assert_same_curve, curve, numbers
from tests.train.test_failures import Broken

CONFIG = quick(
    epochs=3, batch_size=2, micro_batch_size=1, schedule="cosine", warmup_ratio=0.2, lora=LoraConfig(dropout=0.3)
)
STEPS = 9


@pytest.fixture
def rows(tmp_path: Path) -> list[PairRow]:
    return make_rows(tmp_path, 6, pictures=0)


def train(rows: list[PairRow], config: TrainConfig, root: Path, objective: Any = None, run: str = "run") -> None:
    objective = objective or Waiting(folder=root, at=-1)
    train_pairs(tiny("llama"), rows, objective, config, root, root / run, quiet=True)


def stopped_at(call: int, number: int, rows: list[PairRow], config: TrainConfig, root: Path) -> str:
    """What a run ends with that gets a signal while its objective is called for the `call`-th time."""
    child = Child(partial(train, rows, config, root, Waiting(folder=root / "met", at=call)))
    when_met(root / "met", child)
    child.signal(number)
    time.sleep(0.02)
    let_go(root / "met")
    return child.outcome()


def checkpoints(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lora", [CONFIG.lora, None], ids=["lora", "full"])
def test_the_step_is_finished_and_kept(
    number: int, lora: LoraConfig | None, tmp_path: Path, rows: list[PairRow]
) -> None:
    config = replace(CONFIG, lora=lora)
    found = stopped_at(5, number, rows, config, tmp_path)
    assert found == (
        f"Interrupted: interrupted after step 3 of {STEPS}; a checkpoint is written, run the same command again to go "
        "on"
    )
    assert checkpoints(tmp_path) == ["step-00000003"]
    assert len(curve(tmp_path)) == 3
    train(rows, config, tmp_path)
    train(rows, config, tmp_path, run="whole")
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)
    assert len(curve(tmp_path)) == STEPS


def test_the_second_signal_ends_at_once(tmp_path: Path, rows: list[PairRow], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "ECHO_S", 0.05)
    child = Child(partial(train, rows, CONFIG, tmp_path, Waiting(folder=tmp_path / "met", at=3)))
    when_met(tmp_path / "met", child)
    child.signal(signal.SIGINT)
    time.sleep(1.0)  # two signals that Python has not seen yet count as one
    child.signal(signal.SIGINT)
    assert child.outcome() == "KeyboardInterrupt: "
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert len(curve(tmp_path)) == 1


def test_a_launcher_s_echo_is_not_a_second_signal(tmp_path: Path, rows: list[PairRow]) -> None:
    child = Child(partial(train, rows, CONFIG, tmp_path, Waiting(folder=tmp_path / "met", at=3)))
    when_met(tmp_path / "met", child)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        child.signal(number)
    time.sleep(0.05)
    let_go(tmp_path / "met")
    assert child.outcome().startswith("Interrupted: interrupted after step 2 of")


def test_a_kill_loses_what_came_after_the_last_checkpoint(tmp_path: Path, rows: list[PairRow]) -> None:
    """Broken again and again at steps of a seeded choice, every time by kill -9, until it is done."""
    config = replace(CONFIG, checkpoint_every_steps=2)
    rng, kills = random.Random(0), 0
    while kills < 4:
        root = tmp_path / f"{kills}"
        child = Child(partial(train, rows, config, tmp_path, Waiting(folder=root, at=rng.randint(1, 7))))
        while child.process.is_alive() and not (root / "reached").exists():
            time.sleep(0.005)
        child.process.kill()
        assert child.outcome() in ("done", f"killed by {signal.SIGKILL:d}")
        kills += 1
    train(rows, config, tmp_path)
    train(rows, config, tmp_path, run="whole")
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)


@pytest.mark.parametrize("call", [2, 10])
def test_stages_go_on_where_they_were(call: int, tmp_path: Path, rows: list[PairRow]) -> None:
    staged = [replace(row, stage=index % 2) for index, row in enumerate(rows)]
    config = replace(CONFIG, stages="renew", epochs=2)
    assert stopped_at(call, signal.SIGINT, staged, config, tmp_path).startswith("Interrupted: interrupted after step")
    train(staged, config, tmp_path)
    train(staged, config, tmp_path, run="whole")
    assert_same_curve(curve(tmp_path), curve(tmp_path, "whole"), 1e-6)


def test_the_reference_pass_stops_too(tmp_path: Path, rows: list[PairRow], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def waiting(self: FirstPass, *args: Any, inner: Callable[..., Any] = FirstPass._scored) -> Any:
        calls.append(1)
        if len(calls) == 2:
            meet(tmp_path / "met")
        return inner(self, *args)

    monkeypatch.setattr(FirstPass, "_scored", waiting)
    child = Child(partial(train, rows, CONFIG, tmp_path))
    when_met(tmp_path / "met", child)
    child.signal(signal.SIGTERM)
    time.sleep(0.02)
    let_go(tmp_path / "met")
    assert child.outcome() == ("Interrupted: interrupted; what is done is kept, run the same command again to go on")
    train(rows, CONFIG, tmp_path)
    assert len(calls) == 4, "of six pairs two were done"


# Several ranks --------------------------------------------------------------------------------------------------------


def test_ranks_stop_at_the_same_step(tmp_path: Path, rows: list[PairRow]) -> None:
    """Only one of them is told; one process goes on where the two were."""
    config = replace(CONFIG, lora=LoraConfig())
    children = ranks(partial(train, rows, config, tmp_path, Waiting(folder=tmp_path / "met", at=4)), tmp_path / "store")
    when_met(tmp_path / "met", *children)
    children[1].signal(signal.SIGTERM)
    time.sleep(0.02)
    let_go(tmp_path / "met")
    found = [child.outcome() for child in children]
    assert found[0].startswith(f"Interrupted: interrupted after step 4 of {STEPS};")
    assert found[0] == found[1]
    assert checkpoints(tmp_path) == ["step-00000004"]
    train(rows, config, tmp_path)
    train(rows, config, tmp_path, run="whole")
    assert_same_curve(numbers(tmp_path), numbers(tmp_path, "whole"), 1e-4)


@pytest.mark.parametrize("in_gradient", [False, True])
def test_all_ranks_name_the_pair_that_one_of_them_had(in_gradient: bool, tmp_path: Path, rows: list[PairRow]) -> None:
    rows[4] = replace(rows[4], p=0.5)
    objective = Broken(in_gradient=in_gradient)
    children = ranks(partial(train, rows, replace(CONFIG, batch_size=6), tmp_path, objective), tmp_path / "store")
    found = [child.outcome() for child in children]
    assert found[0] == found[1]
    what = "gradient of pair s4#0.0 is not finite" if in_gradient else "loss is not finite at pair s4#0.0;"
    assert what in found[0]
    assert found[0].startswith("TrainError: ")


def test_ranks_share_the_reference_pass_and_stop_together(
    tmp_path: Path, rows: list[PairRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def noting(self: FirstPass, batch: Any, *args: Any, inner: Callable[..., Any] = FirstPass._scored) -> Any:
        for pair in batch.ids:
            (seen / f"{self.rank}-{pair}").touch()
        return inner(self, batch, *args)

    monkeypatch.setattr(FirstPass, "_scored", noting)
    children = ranks(partial(train, rows[:5], CONFIG, tmp_path), tmp_path / "store")
    assert [child.outcome() for child in children] == ["done", "done"]
    assert sorted(path.name for path in seen.iterdir()) == [
        *(f"0-s{index}#0.0" for index in (0, 2, 4)),
        *(f"1-s{index}#0.0" for index in (1, 3)),
    ]


@pytest.mark.parametrize(("limit", "forwards"), [(None, 3), (25, 3), (21, 1), (10, 0)])
def test_in_lockstep_ranks_run_as_many_forwards(
    limit: int | None, forwards: int, tmp_path: Path, rows: list[PairRow]
) -> None:
    """Every forward here waits for the other rank, as those of spread weights do."""
    seen = tmp_path / "seen"
    seen.mkdir()

    def work() -> None:
        state = PartialState(cpu=True)

        def score(batch: PairBatch) -> tuple[Tensor, None]:
            meeting = torch.ones(())
            distributed.all_reduce(meeting)
            assert int(meeting) == 2
            (seen / f"{state.process_index}-{len(list(seen.iterdir()))}").touch()
            return batch.mask.float(), None

        FirstPass(
            folder=tmp_path / "kept",
            key="key",
            collate=Collator(Renderer(tiny("llama").processor), tmp_path, MediaLimits()),
            score=score,
            batch_size=1,
            max_length=limit,
            rank=state.process_index,
            world=2,
            lockstep=True,
        ).run(rows[:5], lambda _: None)

    assert [child.outcome() for child in ranks(work, tmp_path / "store")] == ["done", "done"]
    counts = [len(list(seen.glob(f"{rank}-*"))) for rank in (0, 1)]
    assert counts == [forwards, forwards]
    lengths = [25, 25, 26, 21, 25]
    found = Parts(tmp_path / "kept" / "key").read([row_key(row, tmp_path) for row in rows[:5]])
    assert sum(row.logps is not None for row in found.values()) == sum(length <= (limit or 99) for length in lengths)


# The block itself -----------------------------------------------------------------------------------------------------


def test_a_signal_with_nothing_left_to_stop_is_not_lost() -> None:
    def signalled(error: type[Exception] | None = None) -> None:
        with stop_on_signals() as stop:
            assert not stop.agreed()
            signal.raise_signal(signal.SIGTERM)
            assert stop.agreed()
            if error:
                raise error

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="what is done is kept"):
        signalled()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyError):
        signalled(KeyError)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone() -> None:
    found: list[Stop] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0].asked
