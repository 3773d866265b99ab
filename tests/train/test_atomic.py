"""What is written appears whole or not at all, and a disk that is full is an error of the system."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmalign import atomic
from mmalign.atomic import replacing
from mmalign.cli import main
from mmalign.errors import StoreError
from mmalign.train.cache import parts
from tests.train.rows import make_rows


def test_tensors_that_cannot_be_written_are_told_as_the_system_has_it(tmp_path: Path) -> None:
    wanted = tmp_path / "tensors.safetensors"
    told = f"{wanted}: cannot be written \\(no such file or directory\\); check the disk"
    with pytest.raises(StoreError, match=told), replacing(wanted) as partial:
        save_file({"a": torch.zeros(2)}, partial / "no-folder" / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_torch_tells_of_a_full_disk_as_python_does(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    told = r"cannot be written \(no space left on device\); free some space"
    with pytest.raises(StoreError, match=told), replacing(tmp_path / "state.pt"):
        torch.save({"a": torch.zeros(2)}, Full())
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), replacing(tmp_path / "model"):
        raise RuntimeError("shapes")


def test_what_was_there_comes_back_where_nothing_can_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems where two names cannot change places."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == ".partial-model":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StoreError, match="free some space"), replacing(tmp_path / "model") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_what_is_interrupted_is_cleared_away(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "model") as partial:
        _interrupt(partial)
    assert list(tmp_path.iterdir()) == []


def _interrupt(partial: Path) -> None:
    partial.mkdir()
    raise KeyboardInterrupt


def test_parts_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of reference log-probs may be shared by people who cannot remove each other's files."""
    part = tmp_path / "key" / ".partial-part-0.safetensors"
    part.parent.mkdir()
    part.touch()
    os.utime(part, (0, 0))

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        parts.trim(tmp_path)
    assert part.exists()
    parts.trim(tmp_path)
    assert not part.exists()


def test_a_part_that_the_disk_does_not_give_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = parts.Parts(tmp_path / "key")
    kept.write({"row": parts.Numbers(torch.tensor([1]), torch.tensor([1]), torch.zeros(1))})

    def broken(*given: Any, **more: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "safe_open", broken)
        assert kept.read(["row"]) == {}
    assert "cannot be read" in caplog.text
    assert kept.read(["row"]).keys() == {"row"}


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
    assert "cannot be written" in line
