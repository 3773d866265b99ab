"""Workers in processes of their own: the same pairs, whoever makes them and whoever dies."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from mmalign.engine import remote
from mmalign.engine.generate import generate
from mmalign.engine.rundir import RunDir
from mmalign.errors import MMAlignError, ModelError, RecipeError, StoreError
from mmalign.methods import find_method
from mmalign.pairs import read_pairs
from mmalign.types import MediaRef, SampleRow
from tests.engine import crews
from tests.engine.cases import make, pair_bytes, sample_rows
from tests.engine.crews import ALL, Hanging, Learner, Poisoned, Slow, Then, Wrong, crew, with_crew, workers_of

NUM = 120


@pytest.mark.parametrize("name", ["choosy", "learned"])
def test_workers_make_the_pairs_that_this_process_makes(tmp_path: Path, name: str) -> None:
    here = make(tmp_path / "here", sample_rows(NUM), ALL[name]())
    there = with_crew(tmp_path / "there", sample_rows(NUM), ALL[name](), crew(3))
    here.seconds = there.seconds = 0
    assert there == here
    assert there.pairs > 10
    assert pair_bytes(tmp_path / "there") == pair_bytes(tmp_path / "here")
    assert workers_of(os.getpid()) == []


def test_a_run_of_workers_is_gone_on_with_here_and_back(tmp_path: Path) -> None:
    make(tmp_path / "unbroken", sample_rows(NUM), Learner())
    with_crew(tmp_path / "run", sample_rows(40), Learner(), crew(2))
    make(tmp_path / "run", sample_rows(80), Learner())
    with_crew(tmp_path / "run", sample_rows(NUM), Learner(), crew(1))
    assert make(tmp_path / "run", sample_rows(NUM), Learner()).resumed > 100
    assert pair_bytes(tmp_path / "run") == pair_bytes(tmp_path / "unbroken")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_are_killed_at_any_time(tmp_path: Path, num_workers: int) -> None:
    rng, killed = random.Random(num_workers), []

    def kill() -> None:
        for worker in rng.sample(found := workers_of(os.getpid()), min(len(found), 1)):
            worker.kill()
            killed.append(worker.pid)

    rows = sample_rows(NUM)
    # Of a dead worker as many outcomes as it had samples may still come: by the next kill there is another worker.
    progress = Then(dict.fromkeys((rng.randrange(first, first + 6) for first in range(2, NUM - 30, 20)), kill))
    made = with_crew(tmp_path / "run", rows, Slow(), crew(num_workers), progress=progress)
    make(tmp_path / "unbroken", rows, Slow())
    assert len(set(killed)) >= 4
    assert made.num_samples == NUM
    assert "died" not in str(made.quarantined)
    assert pair_bytes(tmp_path / "run") == pair_bytes(tmp_path / "unbroken")


def test_a_sample_that_kills_its_worker_is_quarantined_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    poison = ("sample-40",)
    rows = sample_rows(60)
    made = with_crew(tmp_path / "run", rows, Poisoned(poison=poison), crew(2), concurrency=16)
    clean = make(tmp_path / "clean", [row for row in rows if row.id not in poison], Poisoned())
    told = {reason: num for reason, num in made.quarantined.items() if "died" in reason}
    assert told == {"the worker that had this sample died 3 times (SIGSEGV)": len(poison)}
    assert made.num_samples == clean.num_samples + len(poison)
    assert "Fatal Python error: Segmentation fault" in capfd.readouterr().err

    pairs = [read_pairs(tmp_path / name / "round-0" / "pairs.parquet") for name in ("run", "clean")]
    assert pairs[0] == pairs[1]
    assert make(tmp_path / "run", rows, Poisoned(poison=poison)).resumed == 60


def test_a_sample_with_which_its_worker_hangs_is_quarantined_alone(tmp_path: Path) -> None:
    rows = sample_rows(40)
    made = with_crew(tmp_path / "run", rows, Hanging(hang="sample-11"), crew(1, hung_s=1.0), concurrency=4)
    told = {reason: num for reason, num in made.quarantined.items() if "died" in reason}
    how = "it hung: none of its samples was finished for 1 s"
    assert told == {f"the worker that had this sample died 3 times ({how})": 1}
    make(tmp_path / "clean", [row for row in rows if row.id != "sample-11"], Hanging())
    pairs = [read_pairs(tmp_path / name / "round-0" / "pairs.parquet") for name in ("run", "clean")]
    assert pairs[0] == pairs[1]


def test_a_worker_that_stands_still_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = sample_rows(NUM)
    progress = Then({20: lambda: workers_of(os.getpid())[0].suspend()})
    with_crew(tmp_path / "run", rows, Slow(), crew(1, hung_s=2.0), progress=progress)
    make(tmp_path / "unbroken", rows, Slow())
    assert "(it hung: none of its samples was finished for 2 s)" in caplog.text
    assert pair_bytes(tmp_path / "run") == pair_bytes(tmp_path / "unbroken")
    assert workers_of(os.getpid()) == []


def test_where_every_sample_kills_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "NUM_IN_ROW", 4)
    poison = tuple(row.id for row in sample_rows(50))
    with pytest.raises(MMAlignError, match=r"workers died 4 times and no sample was finished in between, .*SIGSEGV"):
        with_crew(tmp_path, sample_rows(50), Poisoned(poison=poison), crew(1))
    assert workers_of(os.getpid()) == []


def test_a_worker_that_cannot_load_ends_in_the_line_of_one_process(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model.name 'no/model': there is no such folder$"):
        with_crew(tmp_path, sample_rows(5), Slow(), crew(2, crews.unloadable))


def test_a_worker_that_fails_by_a_bug_shows_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MMAlignError, match="a worker failed with TypeError: no such argument"):
        with_crew(tmp_path, sample_rows(5), Slow(), crew(1, crews.broken))
    assert "worker 0:   File" in capfd.readouterr().err


def test_a_worker_that_dies_while_loading_is_not_started_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"workers died 3 times while they were started \(SIGKILL, perhaps memory ran"):
        with_crew(tmp_path, sample_rows(5), Slow(), crew(1, crews.dies))


def test_workers_with_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'would make other pairs than this process \(model: "scripted-'):
        with_crew(tmp_path, sample_rows(2000), Slow(), crew(2, crews.other))


def test_what_is_wrong_with_the_recipe_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^method.strength: too strong for this model$"):
        with_crew(tmp_path, sample_rows(5), Wrong(), crew(2))


def test_what_cannot_be_sent_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"what `learn` gave cannot be sent to other workers .*generate.workers: 1"):
        with_crew(tmp_path, sample_rows(30), Learner(is_stuck=True), crew(1))
    local = crews.method("local", media="text")(type("Local", (crews.Plain,), {}))
    with pytest.raises(RecipeError, match=r"method local: cannot be sent to other workers .*generate.workers: 1"):
        with_crew(tmp_path / "local", sample_rows(5), local(), crew(1))


@pytest.mark.parametrize("way", ["here", "there"])
def test_a_data_folder_out_of_sight_is_no_fault_of_the_samples(tmp_path: Path, way: str) -> None:
    lm = crew(1) if way == "there" else crews.scripted(0)
    rows = [SampleRow("a", (MediaRef("a.png"),))]
    with pytest.raises(StoreError, match="does not see this data folder"):
        with_crew(tmp_path / "run", rows, Slow(), lm, data_root=tmp_path / "not there")


OWN = """
from mmalign.methods import method
from mmalign.types import Pair
from tests.engine.cases import TwoPass

class Mean(float):
    pass

@method("own", media=("image", "text"))
class Own(TwoPass):
    def learn(self, surveys):
        return Mean(super().learn(surveys) / 1.5)
"""


def test_a_method_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = find_method("mine.py:Own")()
    made = with_crew(tmp_path / "there", sample_rows(NUM), own, crew(2))
    make(tmp_path / "here", sample_rows(NUM), own)
    assert made.pairs > 10
    assert pair_bytes(tmp_path / "there") == pair_bytes(tmp_path / "here")

    def change() -> None:
        (tmp_path / "mine.py").write_text(OWN + "\n# changed\n")
        for worker in workers_of(os.getpid()):
            worker.kill()

    with pytest.raises(RecipeError, match=r"mine.py on .* is not the file that this run was started with"):
        with_crew(tmp_path / "changed", sample_rows(3000), own, crew(2), progress=Then({5: change}))


def test_one_event_loop_and_signals_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with RunDir(tmp_path) as run:
        generate(Slow(), sample_rows(10), crew(2), run=run, data_root=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
