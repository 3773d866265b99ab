"""Same seed, same pairs: whatever the order, the concurrency and the interruptions; and what becomes of bad samples."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign import chunked
from mmalign.chunked import ROWS_AHEAD
from mmalign.engine import RunDir, TooManyBad, generate, generate_async
from mmalign.errors import DataError, Interrupted, MMAlignError, ModelError, RecipeError, StoreError
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods import method
from mmalign.pairs import PairRow, read_pairs
from mmalign.types import Chat, Completion, MediaRef, Pair, Sample, SampleRow, Sampling
from tests.engine.cases import METHODS, Choosy, Plain, TwoPass, answer, make, pair_bytes, sample_rows

generate_module = sys.modules["mmalign.engine.generate"]


class CrashError(Exception):
    """Stands for whatever ends a process in the middle."""


def crashing(rows: list[SampleRow], after: int) -> Iterator[SampleRow]:
    yield from rows[:after]
    raise CrashError


NUM = 200


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pair file of each method over NUM samples, made in one go, one sample at a time."""
    files = {}
    for name, way in METHODS.items():
        path = tmp_path_factory.mktemp(name)
        make(path, sample_rows(NUM), way(), concurrency=1)
        files[name] = pair_bytes(path)
    assert len(set(files.values())) == len(METHODS)
    return files


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    concurrency=st.sampled_from([1, 2, 7, 64, 300]),
    order=st.randoms(use_true_random=False),
    crashes=st.lists(st.integers(0, NUM), max_size=3),
    flush=st.sampled_from([3, 1000]),
)
def test_same_pairs_whatever_happens(
    unbroken: dict[str, bytes], name: str, concurrency: int, order: random.Random, crashes: list[int], flush: int
) -> None:
    rows = sample_rows(NUM)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "FLUSH_NUM", flush)
        patch.setattr(chunked, "ROWS_AHEAD", 16)
        path = Path(folder)
        for after in crashes:
            order.shuffle(rows)
            with pytest.raises(CrashError):
                make(path, crashing(rows, after), METHODS[name](), concurrency=concurrency)
        order.shuffle(rows)
        make(path, rows, METHODS[name](), concurrency=concurrency)
        assert pair_bytes(path) == unbroken[name]


def test_what_is_done_is_not_asked_again(tmp_path: Path) -> None:
    first, second = ScriptedLM(answer), ScriptedLM(answer)
    with pytest.raises(CrashError):
        make(tmp_path, crashing(sample_rows(600), 2 * ROWS_AHEAD), lm=first)
    summary = make(tmp_path, sample_rows(600), lm=second)
    assert summary.resumed >= ROWS_AHEAD
    assert 0 < second.calls["generate"] < summary.model_calls
    assert first.calls["generate"] + second.calls["generate"] >= summary.model_calls


def test_another_seed_gives_other_pairs(tmp_path: Path) -> None:
    for seed in (1, 2):
        make(tmp_path / str(seed), sample_rows(50), seed=seed)
    one, two = (read_pairs(tmp_path / str(seed) / "round-0" / "pairs.parquet") for seed in (1, 2))
    assert {row.seed for row in one} == {1}
    assert not {row.chosen for row in one} & {row.chosen for row in two}


def test_survey_and_pairs_draw_different_answers(tmp_path: Path) -> None:
    # Both passes ask the same thing with the first call; equal seeds would make chosen and rejected the same text.
    summary = make(tmp_path, sample_rows(100), TwoPass())
    assert summary.pairs > 20
    assert not summary.discarded


def test_counts_and_quarantine_add_up(tmp_path: Path) -> None:
    summary = make(tmp_path, sample_rows(200))
    rows = read_pairs(tmp_path / "round-0" / "pairs.parquet")
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert summary.num_samples == 200
    assert summary.pairs == len(rows)
    assert summary.done == len({row.sample_id for row in rows})
    assert [row.sample_id for row in rows] == sorted(row.sample_id for row in rows)
    assert summary.empty["all answers agree"] > 0
    assert summary.quarantined == {"no claim could be judged": len(lines)}
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert set(lines[0]) == {"round", "id", "path", "stage", "reason"}
    assert make(tmp_path, sample_rows(200)).pairs == summary.pairs


def test_broken_pictures_go_to_quarantine(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index in range(6):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(data / f"{index}.png")
    whole = (data / "2.png").read_bytes()
    (data / "2.png").write_bytes(whole[:40])
    (data / "4.png").write_bytes(b"no picture")
    names = [f"{index}.png" for index in range(6)] + ["absent.png", "../secret.png"]
    rows = [SampleRow(name, (MediaRef(name),), prompt="What is there?") for name in names]

    @method("looks")
    class Looks:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            chat = sample.ask(sample.prompt)
            assert len(chat.media) == 1
            yield Pair(chat, await lm.generate(chat), Completion("something else"))

    with RunDir(tmp_path / "run") as run:
        summary = generate(Looks(), rows, ScriptedLM(answer), run=run, data_root=data, max_bad_share=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert summary.done == 4
    assert [line["id"] for line in lines] == ["../secret.png", "2.png", "4.png", "absent.png"]
    assert {line["stage"] for line in lines} == {"media"}
    assert all(line["reason"] for line in lines)
    assert [line["path"] for line in lines] == [line["id"] for line in lines]


def test_pairs_without_a_preference_are_counted(tmp_path: Path) -> None:
    @method("hollow", media="text")
    class Hollow:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            chat = sample.ask("?")
            good, empty = Completion("yes"), Completion("  ")
            if sample.id == "sample-0":
                yield Pair(chat, good, empty)
            elif sample.id == "sample-1":
                yield Pair(chat, empty, good)
                yield Pair(chat, good, Completion("no"))
            elif sample.id == "sample-2":
                yield Pair(chat, good, Completion("yes "))
            elif sample.id == "sample-3":
                yield Pair(chat, good, good, rejected_context=sample.ask("other"))

    summary = make(tmp_path, sample_rows(5), Hollow())
    assert summary.discarded == {
        "the rejected text is empty": 1,
        "the chosen text is empty": 1,
        "chosen and rejected are the same text": 1,
    }
    assert summary.empty == {
        "the rejected text is empty": 1,
        "chosen and rejected are the same text": 1,
        "the method made no pair": 1,
    }
    assert [row.id for row in read_pairs(tmp_path / "round-0" / "pairs.parquet")] == ["sample-1#0.0", "sample-3#0.0"]


def test_a_bug_in_one_sample_names_type_message_and_line(tmp_path: Path) -> None:
    @method("buggy", media="text")
    class Buggy:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            chat = sample.ask("?")
            yield Pair(chat, await lm.generate(chat), Completion("b"))
            if sample.id == "sample-3":
                json.loads("{")
            if sample.id == "sample-5":
                yield Pair(chat, Completion("a\ud800"), Completion("b"))
            if sample.id == "sample-7":
                yield Pair(chat, Completion("a"), Completion("b"), gap=float("nan"))
            if sample.id == "sample-9":
                raise asyncio.CancelledError

    summary = make(tmp_path, sample_rows(20), Buggy())
    assert summary.done == 16
    assert summary.pairs == 16
    reasons = " ".join(sorted(summary.quarantined))
    assert "JSONDecodeError: Expecting property name" in reasons
    assert "(test_generate.py:" in reasons
    assert "UnicodeEncodeError" in reasons
    assert "ValueError: a pair's gap is nan" in reasons
    assert "CancelledError" in reasons


def test_a_method_that_always_fails_stops_the_run_and_is_tried_again(tmp_path: Path) -> None:
    broken = True

    @method("mended", media="text")
    class Mended:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            if broken:
                raise KeyError(sample.id)  # another message for each sample, but one and the same fault
            yield Pair(sample.ask("?"), Completion("a"), Completion(sample.id))

    lm = ScriptedLM(answer)
    with pytest.raises(TooManyBad, match=r"^stopped: the first 10 samples all failed with KeyError: .*test_gen"):
        make(tmp_path, sample_rows(1000), Mended(), lm=lm, concurrency=4)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) >= 10
    broken = False
    summary = make(tmp_path, sample_rows(1000), Mended())
    assert summary.done == 1000
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


@pytest.mark.parametrize(("share", "num_bad", "stops"), [(0.5, 40, False), (0.5, 60, True), (0.1, 40, True)])
def test_too_many_bad_samples_stop_the_run(tmp_path: Path, share: float, num_bad: int, stops: bool) -> None:
    def fail(verb: str, chat: object) -> Exception | None:
        return ModelError("out of memory") if bad[next(turns)] else None

    bad = [index % 10 < num_bad // 10 for index in range(400)]
    turns = iter(range(400))

    @method("once", media="text")
    class Once:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            yield Pair(sample.ask("?"), await lm.generate(sample.ask("?")), Completion("b"))

    lm = ScriptedLM(answer, fail=fail)
    if stops:
        with pytest.raises(TooManyBad, match="out of memory"):
            make(tmp_path, sample_rows(400), Once(), lm=lm, max_bad_share=share)
        assert lm.calls["generate"] < 400
    else:
        summary = make(tmp_path, sample_rows(400), Once(), lm=lm, max_bad_share=share)
        assert summary.quarantined == {"out of memory": 4 * num_bad}


def test_quarantined_samples_are_tried_again_on_request_only(tmp_path: Path) -> None:
    failing = ScriptedLM(
        answer, fail=lambda verb, chat: ModelError("busy") if chat.prompt.startswith("What is 1") else None
    )
    first = make(tmp_path, sample_rows(60), lm=failing)
    assert first.quarantined["busy"] > 0
    again = make(tmp_path, sample_rows(60))
    assert again.quarantined == first.quarantined
    mended = make(tmp_path, sample_rows(60), retry_quarantined=True)
    assert mended.quarantined["busy"] == 0
    make(tmp_path / "unbroken", sample_rows(60))
    assert pair_bytes(tmp_path) == pair_bytes(tmp_path / "unbroken")


def test_sample_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    rows = sample_rows(700)
    for name, at in (("near", 1), ("far", 690)):
        with pytest.raises(DataError, match="'sample-0' occurs twice"):
            make(tmp_path / name, [*rows[:at], rows[0], *rows[at:]])
    make(tmp_path / "done", rows)
    with pytest.raises(DataError, match="'sample-0' occurs twice"):
        make(tmp_path / "done", [*rows, rows[0]])


def test_samples_that_left_the_data_leave_the_pairs_and_changed_ones_are_made_again(tmp_path: Path) -> None:
    rows = sample_rows(40)
    changed = [SampleRow(row.id, prompt=row.prompt + "!") if row.id == "sample-3" else row for row in rows[:30]]
    for name, way in METHODS.items():
        make(tmp_path / name, rows, way())
        make(tmp_path / name, changed, way())
        make(tmp_path / name / "fresh", changed, way())
        assert pair_bytes(tmp_path / name) == pair_bytes(tmp_path / name / "fresh")


@pytest.mark.parametrize(
    ("seed", "way", "lm", "says"),
    [
        (1, Plain(), "scripted", "seed: 0 -> 1"),
        (0, Plain(strength=2), "scripted", 'parameters.strength: "1" -> "2"'),
        (0, Choosy(), "scripted", 'method: "plain" -> "choosy"'),
        (0, Plain(), "other", 'model: "scripted" -> "other"'),
    ],
)
def test_a_journal_of_another_maker_is_refused(tmp_path: Path, seed: int, way: Plain, lm: str, says: str) -> None:
    make(tmp_path, sample_rows(5))
    with pytest.raises(StoreError) as refused:
        make(tmp_path, sample_rows(5), way, lm=ScriptedLM(answer, name=lm), seed=seed)
    assert says in str(refused.value)


def test_names_that_are_no_unicode_are_quarantined(tmp_path: Path) -> None:
    rows = [*sample_rows(5), SampleRow("bad\udcff.png", (MediaRef("bad\udcff.png"),))]
    summary = make(tmp_path, rows, max_bad_share=1)
    assert any("not valid Unicode" in reason for reason in summary.quarantined)
    assert "bad" in (tmp_path / "quarantine.jsonl").read_text()


def test_selection_errors_are_told_in_one_line(tmp_path: Path) -> None:
    @method("doubles", media="text")
    class Doubles(Plain):
        def select(self, rows: list[PairRow]) -> list[PairRow]:
            return [rows[0], rows[0]]

    @method("breaks", media="text")
    class Breaks(Plain):
        def select(self, rows: list[PairRow]) -> list[PairRow]:
            raise ZeroDivisionError("no spread")

    with pytest.raises(MMAlignError, match=r"Doubles: select returned the pair .* twice"):
        make(tmp_path / "a", sample_rows(20), Doubles())
    with pytest.raises(MMAlignError, match=r"Breaks: select failed with ZeroDivisionError: no spread \(test_generate"):
        make(tmp_path / "b", sample_rows(20), Breaks())


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="concurrency: got 0"):
        make(tmp_path, [], concurrency=0)
    with pytest.raises(RecipeError, match="max_bad_share: got 2"):
        make(tmp_path, [], max_bad_share=2)


def test_no_samples_give_an_empty_pair_file(tmp_path: Path) -> None:
    for name, way in METHODS.items():
        if name != "two_pass":
            assert make(tmp_path / name, [], way()).num_samples == 0
            assert read_pairs(tmp_path / name / "round-0" / "pairs.parquet") == []


def test_memory_is_for_the_samples_in_flight_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "FLUSH_NUM", 10)
    pulled = finished = in_flight = most_in_flight = most_ahead = 0

    def rows() -> Iterator[SampleRow]:
        nonlocal pulled, most_ahead
        for row in sample_rows(3000):
            pulled += 1
            most_ahead = max(most_ahead, pulled - finished)
            yield row

    @method("watched", media="text")
    class Watched:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            nonlocal in_flight, most_in_flight, finished
            in_flight += 1
            most_in_flight = max(most_in_flight, in_flight)
            text = await lm.generate(sample.ask("?"))
            in_flight -= 1
            finished += 1
            yield Pair(sample.ask("?"), text, Completion("b"))

    assert make(tmp_path, rows(), Watched(), concurrency=8).done == 3000
    assert most_in_flight == 8
    assert most_ahead <= ROWS_AHEAD + 8


def test_a_signal_stops_cleanly_and_the_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    num_answers = 0

    def interrupting(chat: Chat, sampling: Sampling, seed: int) -> str:
        nonlocal num_answers
        num_answers += 1
        if num_answers == 400:
            signal.raise_signal(signal.SIGTERM)
        return answer(chat, sampling, seed)

    lm = ScriptedLM(interrupting)
    with pytest.raises(Interrupted, match="run the same command again"):
        make(tmp_path, sample_rows(600), lm=lm)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not (tmp_path / "round-0" / "pairs.parquet").exists()
    summary = make(tmp_path, sample_rows(600))
    assert 0 < summary.resumed < 600
    make(tmp_path / "unbroken", sample_rows(600))
    assert pair_bytes(tmp_path) == pair_bytes(tmp_path / "unbroken")


def test_a_second_signal_does_what_it_always_does(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    at_the_end = []

    @method("patient", media="text")
    class Patient:
        async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
            signal.raise_signal(signal.SIGTERM)
            try:
                await asyncio.Event().wait()
            finally:
                at_the_end.append(signal.getsignal(signal.SIGTERM))
            yield Pair(sample.ask("?"), Completion("a"), Completion("b"))

    with pytest.raises(Interrupted):
        make(tmp_path, sample_rows(1), Patient())
    assert at_the_end == [before]


async def test_inside_an_event_loop(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        summary = await generate_async(Plain(), sample_rows(30), ScriptedLM(answer), run=run, data_root=tmp_path)
    assert summary.num_samples == 30


def test_rounds_keep_their_own_pairs_and_share_the_quarantine(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        for round in (0, 1, 0):
            generate(Plain(), sample_rows(50), ScriptedLM(answer), run=run, data_root=tmp_path, round=round)
        first, second = read_pairs(run.pairs_path(0)), read_pairs(run.pairs_path(1))
    assert {row.round for row in second} == {1}
    assert not {row.chosen for row in first} & {row.chosen for row in second}
    lines = [json.loads(line) for line in run.quarantine_path.read_text().splitlines()]
    assert {line["round"] for line in lines} == {0, 1}
    assert len({(line["round"], line["id"]) for line in lines}) == len(lines)
