"""The same recipe and seed give the same bytes of pairs, order aside: whatever the batch, the order and the number of
workers, broken off or not. With the embedded model, through the whole pipeline. Ray's part is in `test_workers_cli`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmalign import pipeline
from mmalign.engine import RunDir, Silent
from mmalign.engine.journal import Status
from mmalign.errors import Interrupted
from mmalign.lm import batch
from mmalign.pairs import read_pairs
from mmalign.pipeline import generating
from mmalign.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "mmalign" / "tiny" / "recipes"
SMALL = ("--evaluate.scenes", "0", "--evaluate.clips", "0")
METHODS = {
    "self_consistency": (*SMALL, "--data.scenes", "2", "--method.samples", "3"),
    "stic": (*SMALL, "--data.scenes", "3"),
    "apasi": (*SMALL, "--data.scenes", "4"),
    "video/rrpo": (*SMALL, "--data.clips", "3"),
    "video/temple": (*SMALL, "--data.clips", "2"),
}


@dataclass(frozen=True)
class Way:
    """How pairs are made: nothing of it may show in them."""

    batch_size: int = 64
    concurrency: int = 64
    is_shuffled: bool = False
    breaks_after: int = 0
    more: tuple[str, ...] = ()

    def words(self) -> list[str]:
        size, flying = str(self.batch_size), str(self.concurrency)
        return ["--generate.batch_size", size, "--generate.concurrency", flying, *self.more]


WAYS = {
    "one by one": Way(batch_size=1, concurrency=3),
    "sevens, shuffled, broken off": Way(batch_size=7, concurrency=1, is_shuffled=True, breaks_after=1),
}


class Breaking(Silent):
    """Stops the run, as a user does, once some samples are done."""

    def __init__(self, after: int) -> None:
        self._left = after

    def finished(self, status: Status) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def made(name: str, way: Way, path: Path) -> bytes:
    """The rows of the pair file, sorted, every number to its last digit."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", [*METHODS[name], *way.words(), "--output", str(path)])
    real = pipeline.source_of
    with pytest.MonkeyPatch.context() as patch, RunDir(path) as run:
        patch.setattr(generating, "progress_on", Silent)
        if way.is_shuffled:
            source = real(recipe)
            rows = list(source.rows)
            random.Random(7).shuffle(rows)
            patch.setattr(generating, "source_of", lambda recipe: replace(source, rows=rows))
        if way.breaks_after:
            patch.setattr(generating, "progress_on", lambda: Breaking(way.breaks_after))
            with pytest.raises(Interrupted):
                pipeline.make_pairs(recipe, run)
            patch.setattr(generating, "progress_on", Silent)
        pipeline.make_pairs(recipe, run)
    rows = read_pairs(path / "round-0" / "pairs.parquet")
    return "\n".join(sorted(json.dumps(row.to_row(), sort_keys=True) for row in rows)).encode()


Base = Callable[[str], bytes]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The pairs of a method at full batches, made once."""
    known: dict[str, bytes] = {}

    def find(name: str) -> bytes:
        if name not in known:
            known[name] = made(name, Way(), tmp_path_factory.mktemp("base"))
        return known[name]

    return find


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(METHODS))
def test_pairs_are_the_same_byte_for_byte(
    name: str, way: str, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = base(name)
    assert expected.count(b"\n") >= 1  # two pairs or more
    assert made(name, WAYS[way], tmp_path) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_four_workers_make_the_same_pairs(base: Base, tmp_path: Path) -> None:
    way = Way(batch_size=7, is_shuffled=True, more=("--generate.workers", "4"))
    assert made("apasi", way, tmp_path) == base("apasi")  # four samples, one for each


def test_the_sweep_sees_what_it_would_see_without_exact_logits(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sweep with the last bits let through: beliefs differ from batch to batch."""
    monkeypatch.setattr(batch, "is_exact", lambda model: False)
    ways = (Way(), Way(batch_size=1, concurrency=3))
    loose = [made("self_consistency", way, tmp_path / str(number)) for number, way in enumerate(ways)]
    assert loose[0] != loose[1]
