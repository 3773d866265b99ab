"""Where the page looks for the media of pairs: the same place as the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmalign.report.files import Facts


@pytest.mark.parametrize(
    ("data", "root"),
    [
        ({"pairs": "given/pairs.jsonl"}, "given"),
        ({"pairs": "given/pairs.jsonl", "media_root": "media"}, "media"),
        ({"samples": "made/samples.jsonl", "media_root": "media"}, "media"),
        ({"samples": "made/samples.jsonl"}, "made"),
        ({"images": "media"}, "media"),
        ({"videos": "media"}, "media"),
        ({"scenes": 3, "media_root": "media"}, "run/scenes"),
        ({"clips": 3}, "run/clips"),
        ({}, "run/scenes"),
    ],
)
def test_media_are_looked_for_where_the_recipe_says(data: dict[str, Any], root: str, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    named = {key: value if isinstance(value, int) else str(tmp_path / value) for key, value in data.items()}
    assert Facts("", {"data": named}, ()).data_root(tmp_path / "run") == tmp_path / root
