"""What is written appears whole or not at all, and a disk that is full is an error of the system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmalign.cli import main
from mmalign.train.cache import parts
from mmalign.train.output.atomic import replacing
from tests.train.rows import make_rows


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path: Path) -> None:
    wanted = tmp_path / "tensors.safetensors"
    with pytest.raises(OSError, match="no-folder") as raised, replacing(wanted) as partial:
        save_file({"a": torch.zeros(2)}, partial / "no-folder" / "x.safetensors")
    assert raised.value.filename == str(wanted)
    assert not wanted.exists()


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmalign.pairs import write_pairs

    write_pairs(tmp_path / "pairs.parquet", make_rows(tmp_path, 2))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"objective: {{name: dpo}}\ndata: {{pairs: {tmp_path / 'pairs.parquet'}}}\nmodel: {{name: tiny}}\n"
        f"output: {tmp_path / 'run'}\n",
        encoding="utf-8",
    )

    def full(tensors: object, path: Path, **_: object) -> None:
        save_file({"a": torch.zeros(2)}, path / "x")  # a folder that is not there, for a disk without room

    monkeypatch.setattr(parts, "save_file", full)
    assert main(["train", str(recipe)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmalign:")]
    assert "part-" in line
    assert "I/O error" in line
    assert "what is done is kept" in line
