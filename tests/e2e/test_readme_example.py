"""The README's library example runs as it stands there."""

import re
from pathlib import Path

import pytest

from mmalign.tiny import draw_scene, scenes

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert found
    code = found.group(1)
    assert len(code.splitlines()) <= 15
    (tmp_path / "pictures").mkdir()
    for index, scene in enumerate(scenes(6, seed=0, split="dev")):
        draw_scene(scene).save(tmp_path / "pictures" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "pairs; the first:" in out
    assert "chair_s" in out
    assert "recall" in out
