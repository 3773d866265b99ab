"""Progress on a clock of the tests' own."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from mmalign.engine import RunDir, generate
from mmalign.engine.progress import Lines, Meter, Progress, Terminal, progress_on
from mmalign.lm.scripted import ScriptedLM
from tests.engine.cases import Plain, answer, sample_rows


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(meter: Meter, clock: HandClock, num: int, seconds: float) -> None:
    for _ in range(num):
        meter.add("done", fresh=True)
    clock.now += seconds
    meter.mark()


def test_rate_and_time_to_go_leave_out_what_was_done_before() -> None:
    clock = HandClock()
    meter = Meter("pairs", 10_000, clock)
    for _ in range(5000):
        meter.add("done", fresh=False)
    assert meter.text() == "pairs: 5,000 of 10,000, 5,000 left"
    work(meter, clock, 100, 10)
    assert meter.rate == 10
    assert meter.left_s == 490
    meter.add("quarantined", fresh=True)
    meter.add("empty", fresh=True)
    expected = "pairs: 5,102 of 10,000, 4,898 left, 10/s, 8 min to go, 1 quarantined, 1 without a pair"
    assert meter.text() == expected


def test_the_rate_is_of_the_last_minute() -> None:
    clock = HandClock()
    meter = Meter("pairs", 100_000, clock)
    for _ in range(60):
        work(meter, clock, 1, 10)
    for _ in range(60):
        work(meter, clock, 100, 10)
    assert meter.rate == 10


def test_a_clock_that_is_set_back_or_stands_still_does_no_harm() -> None:
    clock = HandClock()
    meter = Meter("pairs", None, clock)
    work(meter, clock, 10, 10)
    work(meter, clock, 10, -5000)
    assert meter.rate == 2
    clock.now = 1010.0
    work(meter, clock, 10, 10)
    assert meter.rate == 1.5
    assert meter.left_s is None
    assert meter.text() == "pairs: 30, 1.5/s"


def test_lines_come_every_ten_seconds_whatever_the_clock_does() -> None:
    clock, stream = HandClock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    lines.start("pairs", 100)
    for _ in range(25):
        clock.now += 1
        lines.finished("done")
        lines.tick()
    assert len(stream.getvalue().splitlines()) == 3
    clock.now -= 10_000
    lines.tick()
    assert len(stream.getvalue().splitlines()) == 4
    lines.end()
    assert stream.getvalue().splitlines()[-1].startswith("pairs: 25 of 100, 75 left, 1/s, 75 s to go")


def test_a_terminal_gets_a_bar_with_the_same_words() -> None:
    stream = io.StringIO()
    terminal = Terminal(Console(file=stream, force_terminal=True, width=120))
    terminal.start("pairs", 4)
    for status in ("done", "done", "quarantined"):
        terminal.finished(status)  # type: ignore[arg-type]
    terminal.end()
    assert "pairs: 3 of 4, 1 left" in stream.getvalue()
    assert "1 quarantined" in stream.getvalue()


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(progress_on(io.StringIO()), Lines)


def test_generation_tells_start_progress_and_end(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress: Progress = Lines(stream)
    with RunDir(tmp_path) as run:
        generate(
            Plain(), iter(sample_rows(20)), ScriptedLM(answer), run=run, data_root=tmp_path, progress=progress, total=20
        )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pairs: 0 of 20, 20 left"
    assert lines[-1].startswith("pairs: 20 of 20, 0 left")
