"""What a million samples need: little memory, and starts that look at what is new only. No time is measured."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.engine import RunDir, Silent, generate
from mmalign.engine.journal import Status
from mmalign.engine.known import Known, Wants, key_of, keys_of
from mmalign.errors import DataError, NoPair, SampleError
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import MAX_ASKED, ScriptedLM
from mmalign.methods import Method, SurveyMethod, method
from mmalign.pairs import read_pairs
from mmalign.types import Chat, Message, Pair, Sample, SampleRow, Sampling
from tests.engine.cases import METHODS, TwoPass, answer, make, sample_rows

#: Of the pairs of 300 samples with seed 5, as the engine of version 0.3 made them.
STORED = {
    "plain": "9795480fe4266aecfdb13ea2b65d3c49",
    "two_pass": "d1c84c732ea2188483995d8b4ebfe566",
    "choosy": "ab4f2d9ab61f0d40f78757e6d449db92",
}

generate_module = sys.modules["mmalign.engine.generate"]

LONGS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_pairs_are_those_of_the_engine_before(tmp_path: Path, name: str) -> None:
    make(tmp_path, sample_rows(300), METHODS[name](), seed=5)
    rows = read_pairs(tmp_path / "round-0" / "pairs.parquet")
    text = "".join(json.dumps(row.to_row(), sort_keys=True) + "\n" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == STORED[name]


@method("thirds", media=("image", "text"))
class Thirds:
    """A third each of pairs, of samples without one and of bad ones, each with a reason of its own."""

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        draw = rng.randrange(3)
        if draw == 0:
            raise NoPair(f"nothing to prefer in {sample.id}")
        if draw == 1:
            raise SampleError(f"{sample.id} cannot be used")
        chat = sample.ask(sample.prompt)
        yield Pair(chat, await lm.generate(chat), await lm.generate(chat, Sampling(temperature=1.0)))


class Traced(Silent):
    """Bytes that Python holds after so many samples."""

    def __init__(self, *marks: int) -> None:
        self.marks = marks
        self.num = 0
        self.held: list[int] = []

    def finished(self, status: Status) -> None:
        self.num += 1
        if self.num in self.marks:
            gc.collect()
            self.held.append(tracemalloc.get_traced_memory()[0])


@pytest.mark.parametrize(("way", "num"), [(Thirds(), 4_500), (TwoPass(), 2_400)])
def test_memory_does_not_grow_with_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Method | SurveyMethod, num: int
) -> None:
    monkeypatch.setattr(generate_module, "FLUSH_NUM", 25)  # outcomes that wait to be written are no growth

    def rows() -> Iterator[SampleRow]:
        return (SampleRow(f"sample-{index}", prompt=f"What is {index}?") for index in range(num))

    class Rows:
        def __iter__(self) -> Iterator[SampleRow]:
            return rows()

    traced = Traced(num // 3, num - 100)
    tracemalloc.start()
    try:
        with RunDir(tmp_path) as run:
            summary = generate(
                way, Rows(), ScriptedLM(answer), run=run, data_root=tmp_path, max_bad_share=1.0, progress=traced
            )
    finally:
        tracemalloc.stop()
    assert summary.num_samples == num
    early, late = traced.held
    # What waits at that moment may differ. An id that was kept would take 150 bytes, a chat 500.
    assert (late - early) / (num * 2 / 3) < 100
    assert len(summary.quarantined) <= 1001
    assert len(summary.empty) <= 1001


def test_an_id_is_refused_that_this_start_has_made_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "FLUSH_NUM", 20)
    rows = [*sample_rows(900), *sample_rows(1)]
    with pytest.raises(DataError, match=r"the sample id 'sample-0' occurs twice \(again by row 901\)"):
        make(tmp_path, rows)


def test_an_id_is_refused_whose_first_row_changed_and_whose_second_did_not(tmp_path: Path) -> None:
    rows = sample_rows(300)
    make(tmp_path, rows)
    with pytest.raises(DataError, match=r"the sample id 'sample-0' occurs twice \(again by row 301\)"):
        make(tmp_path, [SampleRow("sample-0", prompt="Another?"), *rows[1:], rows[0]])


async def test_a_scripted_model_remembers_the_first_chats_only() -> None:
    lm = ScriptedLM({"*": "x"})
    for number in range(MAX_ASKED + 5):
        await lm.generate(Chat((Message("user", (str(number),)),)), Sampling(), seed=0)
    assert [chat.prompt for _, chat in lm.asked] == [str(number) for number in range(MAX_ASKED)]
    assert lm.calls["generate"] == MAX_ASKED + 5


@settings(deadline=None)
@given(st.dictionaries(LONGS, st.tuples(LONGS, st.integers(0, 99), st.integers(0, 2))), st.lists(LONGS))
def test_known_outcomes_are_found_by_key(outcomes: dict[int, tuple[int, int, int]], others: list[int]) -> None:
    rows = [(key, *values) for key, values in outcomes.items()]
    known = Known.of([rows[:3], rows[3:]] if len(rows) > 3 else [rows] if rows else [])
    asked = [*outcomes, *others]
    for key, place in zip(asked, known.places(np.array(asked, np.int64)), strict=True):
        if place < 0:
            assert key not in outcomes
        else:
            assert (known.prints[place], known.seqs[place], known.statuses[place]) == outcomes[key]


def test_wanted_are_marked_outcomes_and_later_ones() -> None:
    wants = Wants(4)
    wants.mark(np.array([1, 3]))
    assert [wants(seq) for seq in range(7)] == [False, True, False, True, False, True, True]
    assert wants.among(np.arange(7)).tolist() == [wants(seq) for seq in range(7)]


def test_keys_are_stable() -> None:
    assert key_of("sample-1") == int.from_bytes(
        hashlib.blake2b(b"sample-1", digest_size=8).digest(), "little", signed=True
    )
    assert keys_of(["sample-1", "ä"]).tolist() == [key_of("sample-1"), key_of("ä")]
