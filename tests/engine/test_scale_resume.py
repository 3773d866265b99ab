"""Starting again on a large source: read once, looked up in a few statements, written only where something changed."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.chunked import CHUNK_ROWS, chunks_of
from mmalign.engine import RunDir, Silent, Summary, generate
from mmalign.engine.journal import Journal, Outcome, Status
from mmalign.errors import DataError, StoreError
from mmalign.lm.scripted import ScriptedLM
from mmalign.samples import jsonlines, read_samples
from mmalign.types import SampleRow
from tests.engine.cases import METHODS, Plain, answer, make, pair_bytes, sample_rows

NUM = 2 * CHUNK_ROWS + 300


def lines(path: Path, numbers: Iterable[int], changed: Sequence[int] = ()) -> Path:
    """A sample file of JSON lines; of the `changed` ones the prompt is another."""
    told = [{"id": f"s{n}", "prompt": f"What is {n}{' now' * (n in changed)}?"} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    return path


class Read:
    """How many lines were read as samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        read = jsonlines.sample_of

        def counted(row: Any, where: str) -> SampleRow:
            self.num += 1
            return read(row, where)

        monkeypatch.setattr(jsonlines, "sample_of", counted)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over NUM lines."""
    folder = tmp_path_factory.mktemp("finished")
    make(folder / "run", read_samples(lines(folder / "rows.jsonl", range(NUM))))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, settled: the first start after copying writes its files again."""
    shutil.copytree(finished, tmp_path / "copy")
    make(tmp_path / "copy" / "run", read_samples(tmp_path / "copy" / "rows.jsonl"))
    return tmp_path / "copy"


def states(run: Path) -> list[tuple[int, int]]:
    found = [(run / name).stat() for name in ("round-0/pairs.parquet", "quarantine.jsonl")]
    return [(state.st_ino, state.st_mtime_ns) for state in found]


def test_a_finished_run_is_neither_read_nor_written_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, before = Read(monkeypatch), states(run / "run")
    lm = ScriptedLM(answer)
    first = make(run / "run", read_samples(run / "rows.jsonl"), lm=lm)
    assert read.num == 0
    assert not lm.calls
    assert states(run / "run") == before
    assert first.resumed == first.num_samples == NUM
    fresh = make(run / "fresh", read_samples(run / "rows.jsonl"))
    assert first.to_row() == fresh.to_row()
    assert pair_bytes(run / "run") == pair_bytes(run / "fresh")


@pytest.mark.parametrize("name", ["two_pass", "choosy"])
def test_so_is_one_that_surveys_or_selects(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "rows.jsonl", range(300))
    for _ in range(2):
        summary = make(tmp_path / "run", read_samples(path), METHODS[name]())
    read, before = Read(monkeypatch), states(tmp_path / "run")
    assert make(tmp_path / "run", read_samples(path), METHODS[name]()).to_row() == summary.to_row()
    assert states(tmp_path / "run") == before
    assert read.num == 0


def change_one(rows: Path) -> None:
    lines(rows, range(NUM), changed=[CHUNK_ROWS + 7])


def remove_some(rows: Path) -> None:
    lines(rows, [n for n in range(NUM) if n not in (5, 17)])


def add_one(rows: Path) -> None:
    lines(rows, range(NUM + 1))


def shuffle(rows: Path) -> None:
    numbers = list(range(NUM))
    random.Random(0).shuffle(numbers)
    lines(rows, numbers)


@pytest.mark.parametrize(
    ("change", "num_read", "num_asked"), [(change_one, 1000, 1), (remove_some, NUM - 2, 0), (add_one, 301, 1)]
)
def test_changed_data_are_noticed(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: Any, num_read: int, num_asked: int
) -> None:
    change(run / "rows.jsonl")
    fresh = make(run / "fresh", read_samples(run / "rows.jsonl"))
    read, before = Read(monkeypatch), states(run / "run")
    again = make(run / "run", read_samples(run / "rows.jsonl"))
    assert read.num == num_read
    assert again.num_samples - again.resumed == num_asked
    assert again.to_row() == fresh.to_row()
    assert pair_bytes(run / "run") == pair_bytes(run / "fresh")
    assert all(now != then for now, then in zip(states(run / "run"), before, strict=True))


def test_another_order_is_read_once_and_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffle(run / "rows.jsonl")
    read, before = Read(monkeypatch), states(run / "run")
    for _ in range(2):
        assert make(run / "run", read_samples(run / "rows.jsonl")).resumed == NUM
    assert read.num == NUM
    assert states(run / "run") == before


@pytest.mark.parametrize("name", ["round-0/pairs.parquet", "quarantine.jsonl"])
@pytest.mark.parametrize("is_removed", [True, False])
def test_files_that_somebody_touched_are_written_again(run: Path, name: str, is_removed: bool) -> None:
    path = run / "run" / name
    content = path.read_bytes()
    if is_removed:
        path.unlink()
    else:
        path.write_bytes(content[:-1] + b"?")
    make(run / "run", read_samples(run / "rows.jsonl"))
    assert path.read_bytes() == content


def test_a_limit_that_cuts_a_chunk(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", range(40))
    for limit in (25, 10, 40, 0, 25):
        summary = make(tmp_path / "run", read_samples(path, limit))
        assert summary.num_samples == limit
    assert (summary.resumed, len(list(read_samples(path, 25)))) == (25, 25)


@pytest.mark.parametrize("twin", [0, CHUNK_ROWS - 1, NUM])
def test_an_id_given_twice_is_refused_in_data_that_were_seen(run: Path, twin: int) -> None:
    with (run / "rows.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"id": f"s{n}", "prompt": "x"}) + "\n" for n in (NUM, twin))
    with pytest.raises(DataError, match=rf"^data: the sample id 's{twin}' occurs twice \(again by row {NUM + 2}\)"):
        make(run / "run", read_samples(run / "rows.jsonl"))


class Counting(Silent):
    def __init__(self) -> None:
        self.statuses: list[Status] = []
        self.totals: list[int | None] = []

    def start(self, title: str, total: int | None) -> None:
        self.totals.append(total)

    def found(self, status: Status) -> None:
        self.statuses.append(status)


def test_few_statements_find_what_is_to_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scan for what is known, one look-up for each chunk, whatever the number of samples."""
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **settings: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **settings)
        database.set_trace_callback(statements.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    progress = Counting()
    with RunDir(run / "run") as folder:
        rows = read_samples(run / "rows.jsonl")
        summary = generate(Plain(), rows, ScriptedLM(answer), run=folder, data_root=run, progress=progress)
    assert sum("FROM seen" in statement for statement in statements) == 3
    assert sum("key, fingerprint, seq" in statement for statement in statements) == 1
    assert len(statements) < 40
    assert (progress.statuses.count("done"), len(progress.statuses)) == (summary.done, NUM)


@pytest.mark.parametrize("name", ["plain", "two_pass"])
def test_an_old_sqlite_names_few_values_in_a_statement(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 3.32 it took 999, and systems of long support still have it."""
    connect = sqlite3.connect

    def old(*args: Any, **settings: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **settings)
        database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
        return database

    path = lines(tmp_path / "rows.jsonl", range(NUM))
    make(tmp_path / "new", read_samples(path), METHODS[name]())
    monkeypatch.setattr(sqlite3, "connect", old)
    monkeypatch.setattr(sys.modules["mmalign.engine.generate"], "FLUSH_NUM", 100)
    make(tmp_path / "old", read_samples(path), METHODS[name]())
    assert pair_bytes(tmp_path / "old") == pair_bytes(tmp_path / "new")
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        made = [Outcome(phase="pairs", sample_id=f"s{n}", status="done", fingerprint=0, made="7") for n in range(NUM)]
        journal.write(made)
        assert journal.made(range(NUM + 1)) == dict.fromkeys(range(1, NUM + 1), 7)
        assert journal.written_since("pairs", [*(f"s{n}" for n in range(NUM)), "x"], NUM - 1) == {f"s{NUM - 1}"}


def as_parquet(path: Path) -> Path:
    table = {
        "id": [f"s{n}" for n in range(NUM)],
        "media": ["[]"] * NUM,
        "prompt": [f"What is {n}?" for n in range(NUM)],
    }
    pq.write_table(pa.table(table), path.with_suffix(".parquet"), row_group_size=700)
    return path.with_suffix(".parquet")


def as_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    for name in (f"{n % 3}/{n}.png" for n in range(30)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("source", [lambda path: lines(path, range(NUM)), as_parquet, as_folder])
def test_chunks_hold_the_rows_and_are_read_again(tmp_path: Path, source: Any) -> None:
    rows = read_samples(source(tmp_path / "rows.jsonl"))
    once, again = list(rows), list(rows)
    chunks = list(chunks_of(rows))
    assert once == again == [row for chunk in chunks for _, row in chunk.rows()]
    assert len({chunk.digest for chunk in chunks}) == len(chunks) > 0
    assert [chunk.num_rows for chunk in chunks] == [len(list(chunk.rows())) for chunk in chunks]
    assert rows.total in (None, len(once))
    assert [chunk.digest for chunk in chunks_of(rows)] == [chunk.digest for chunk in chunks]
    assert {chunk.digest for chunk in chunks_of(sample_rows(3))} == {None}


def test_a_journal_of_another_format_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "round-0" / "journal.sqlite"
    make(tmp_path, sample_rows(3))
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE note SET value = '1' WHERE key = 'format'")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"journal of format 1, this mmalign reads 2; go on with the version") as error:
        make(tmp_path, sample_rows(3))
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_kill_before_the_note_writes_the_files_again(run: Path) -> None:
    before = states(run / "run")
    with closing(sqlite3.connect(run / "run" / "round-0" / "journal.sqlite")) as database:
        database.execute("DELETE FROM note WHERE key = 'written'")
        database.commit()
    content = pair_bytes(run / "run")
    summary: Summary = make(run / "run", read_samples(run / "rows.jsonl"))
    assert summary.resumed == NUM
    assert pair_bytes(run / "run") == content
    assert all(now != then for now, then in zip(states(run / "run"), before, strict=True))
    assert not list((run / "run" / "round-0").glob(".*"))


def test_numbers_of_outcomes_grow_though_some_are_forgotten(tmp_path: Path) -> None:
    def outcome(name: str) -> Outcome:
        return Outcome(phase="pairs", sample_id=name, status="quarantined", fingerprint=0)

    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        journal.write([outcome("a"), outcome("b")])
        journal.clear("pairs")
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        assert journal.last_seq == 2  # what was to be tried again up to 2 is not what comes now
        journal.write([outcome("c")])
        assert journal.seqs("pairs").tolist() == [3]
