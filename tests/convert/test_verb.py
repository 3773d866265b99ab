"""`mmalign convert` on the command line, and what a large conversion takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmalign.cli import SOURCES, TARGETS, main
from mmalign.convert.conversion import FORMATS
from mmalign.convert.format import Survey, Table
from mmalign.convert.seen import Seen
from mmalign.convert.sources import OWN, READERS
from mmalign.pairs import PairRow, iter_pairs, read_pairs, write_pairs
from tests.convert.cases import convert, make_media, pair, text, turn


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_media(tmp_path)
    write_pairs(tmp_path / "pairs.parquet", [pair(id="a"), pair(turn("user", text("<image>")), id="b")])
    return tmp_path / "pairs.parquet"


def test_there_and_back(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    command = ["convert", str(source), "--to", "swift", "--output", str(out)]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"mmalign: {source}: row 1 (pair b): ")
    assert told.count("\n") == 1
    assert main([*command, "--skip-unfit"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].startswith(f"1 pairs do not fit and are left out; the first: {source}: row 1")
    assert f"{out}: 1 pairs (mmalign to swift)" in told
    assert f"media are not copied; their paths start from {source.parent}" in told
    assert main(["convert", str(out), "--to", "mmalign", "--output", str(source.parent / "back")]) == 0
    assert "1 media files are not there, a.png for one" in capsys.readouterr().out
    assert read_pairs(source.parent / "back" / "pairs.parquet") == read_pairs(source)[:1]


def test_a_dry_run_writes_nothing(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(source.parent.rglob("*"))
    command = ["convert", str(source), "--to", "trl", "--output", str(source.parent / "out"), "--dry-run"]
    assert main([*command, "--skip-unfit"]) == 0
    assert f"would write 1 pairs (mmalign to trl) to {source.parent / 'out'}" in capsys.readouterr().out
    assert main(command) == 2, "it looks at every row"
    assert sorted(source.parent.rglob("*")) == before


def test_media_go_along_when_asked(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    flags = ["--skip-unfit", "--copy-media", "--from", "mmalign", "--media-root", str(source.parent)]
    assert main(["convert", str(source), "--to", "llamafactory", "--output", str(out), *flags]) == 0
    assert (out / "a.png").is_file()
    assert "not copied" not in capsys.readouterr().out


def test_where_the_media_are_is_told_as_it_is(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", str(source), "--to", "trl", "--output", str(source.parent / "out"), "--skip-unfit"]
    assert main(command) == 0
    assert "media are not copied; their paths are absolute, for this machine\n" in capsys.readouterr().out


def test_an_interrupted_conversion_does_not_say_that_something_is_kept(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Survey, seen: Seen) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Survey, "add", interrupted)
    before = sorted(source.parent.rglob("*"))
    out = source.parent / "out"
    assert main(["convert", str(source), "--to", "swift", "--output", str(out)]) == 130
    assert capsys.readouterr().err == f"mmalign: convert: interrupted; nothing was written to {out}\n"
    assert sorted(source.parent.rglob("*")) == before


def test_the_parser_knows_all_formats() -> None:
    assert set(TARGETS) == set(FORMATS)
    assert set(SOURCES) == {*READERS, OWN}


@pytest.mark.parametrize("to", FORMATS)
def test_rows_are_written_as_they_are_read(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pairs there are, one batch of them is in memory."""
    count, read, written, largest = 500, [0], [0], [0]
    rows = (pair(turn("user", text(str(n))), id=str(n)) for n in range(count))
    write_pairs(tmp_path / "pairs.parquet", rows)

    def counted(path: Path) -> Iterator[PairRow]:
        for row in iter_pairs(path):
            read[0] += 1
            yield row

    def watched(self: Survey, seen: Seen) -> None:
        written[0] += 1
        assert read[0] == written[0], "no row is read before the one before it is written"
        add(self, seen)

    def flushed(self: Table) -> None:
        largest[0] = max(largest[0], len(self._rows))
        flush(self)

    add, flush = Survey.add, Table._flush
    monkeypatch.setattr("mmalign.convert.sources.iter_pairs", counted)
    monkeypatch.setattr(Survey, "add", watched)
    monkeypatch.setattr(Table, "_flush", flushed)
    monkeypatch.setattr(Table.__init__, "__defaults__", (60, 10**9))
    convert(tmp_path / "pairs.parquet", to, tmp_path / "out")
    assert written[0] == 2 * count
    assert largest[0] == (60 if to in ("trl", "mmalign") else 0)
