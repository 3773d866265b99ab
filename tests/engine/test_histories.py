"""Whatever was done to the data between starts, a run that is gone on with holds what a fresh one would."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmalign.engine import Summary
from mmalign.errors import DataError, MMAlignError
from mmalign.samples import jsonlines, read_samples
from tests.engine.cases import METHODS, make, pair_bytes

#: A file of samples: the number of each and which of its prompts it has. A number may stand there twice.
FILES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 1)), max_size=14, unique_by=lambda row: row[0])
TWINS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=5)
START = st.tuples(FILES | TWINS, st.none() | st.integers(1, 12), st.booleans())


def start(path: Path, name: str, rows: list[tuple[int, int]], limit: int | None, retry: bool) -> Any:
    """What a start over these rows ends with."""
    source = path.parent / "rows.jsonl"
    told = ({"id": f"s{number}", "prompt": f"What is {number}, {form}?"} for number, form in rows)
    source.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    try:
        summary: Summary = make(path, read_samples(source, limit), METHODS[name](), retry_quarantined=retry)
    except MMAlignError as error:
        return type(error), "twice" in str(error)
    return summary.to_row(), pair_bytes(path), (path / "quarantine.jsonl").read_bytes()


@settings(max_examples=25)
@given(st.sampled_from(["plain", "two_pass"]), st.lists(START, min_size=2, max_size=4))
@example("plain", [([(0, 0)], None, False), ([(0, 1), (1, 0), (2, 0), (0, 0)], None, False)])
def test_a_run_over_changing_data_holds_what_a_fresh_one_would(name: str, starts: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(jsonlines, "CHUNK_ROWS", 3)
        for number, (rows, limit, retry) in enumerate(starts):
            fresh = start(Path(folder, f"fresh-{number}"), name, rows, limit, False)
            assert start(Path(folder, "run"), name, rows, limit, retry) == fresh
            taken = [row[0] for row in rows[:limit]]
            assert (len(set(taken)) < len(taken)) == (fresh == (DataError, True))
