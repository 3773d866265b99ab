"""Pairs come back from every format exactly as they went."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.pairs import PairRow
from tests.convert.cases import make_media, pairs, there_and_back

SETTINGS = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
KINDS = {"trl": ("text", "image"), "llamafactory": ("text", "image", "video"), "swift": ("text", "image", "video")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("media"))


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("copies", [False, True], ids=["named", "copied"])
def test_all_of_a_pair_comes_back(to: str, copies: bool, root: Path) -> None:
    @SETTINGS
    @given(st.lists(pairs(KINDS[to], own_contexts=to == "swift"), min_size=1, max_size=3))
    def check(rows: list[PairRow]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert there_and_back(rows, to, Path(folder), root, copies=copies) == rows

    check()


@pytest.mark.parametrize("to", KINDS)
def test_pairs_of_text_alone_come_back(to: str, root: Path) -> None:
    @SETTINGS
    @given(st.lists(pairs(("text",)), min_size=1, max_size=3))
    def check(rows: list[PairRow]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert there_and_back(rows, to, Path(folder), root) == rows

    check()
