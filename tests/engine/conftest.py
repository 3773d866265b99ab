"""One nursery for all tests that kill, as it takes seconds to start; beside it a whole run to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.kills import WHOLE, Nursery


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `nursery` has done is here: a run of pairs, training and page in `warm`."""
    return tmp_path_factory.mktemp("nursery")


@pytest.fixture(scope="session")
def nursery(folder: Path) -> Iterator[Nursery]:
    """With all loaded that `mmalign run` and a scripted run need."""
    run = (*WHOLE, "--output", str(folder / "warm"))
    with Nursery(folder / "words", [("command", run), ("scripted", (str(folder / "scripted"), "plain", "9"))]) as found:
        yield found
