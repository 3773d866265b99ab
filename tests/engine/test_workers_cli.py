"""`mmalign generate` with workers and on Ray: the embedded model's pairs, byte for byte those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmalign.cli import main
from tests.engine.cases import pair_bytes

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "image" / "stic.yaml"


def generate(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmalign", *words(path, *flags)],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def words(path: Path, *flags: str) -> list[str]:
    return ["generate", str(RECIPE), "--data.scenes", "6", "--model.device", "cpu", "--output", path.name, *flags]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        assert main(words(Path("run"))) == 0
        return pair_bytes(Path("run"))


@pytest.mark.parametrize(
    "flags",
    [("--generate.workers", "2"), ("--engine", "ray", "--generate.workers", "2", "--generate.cpus_per_worker", ".5")],
)
def test_the_same_pairs(tmp_path: Path, alone: bytes, flags: tuple[str, ...]) -> None:
    if "ray" in flags:
        pytest.importorskip("ray")
    done = generate(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert pair_bytes(tmp_path / "run") == alone
    progress = [line for line in done.stderr.splitlines() if not line.startswith("pairs: ")]
    assert progress == []  # neither Ray nor the workers have anything to say
    assert len(alone) > 5000
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if words and str(tmp_path) in " ".join(words)]


def test_a_model_that_is_not_there_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = words(tmp_path / "run", "--generate.workers", "2", "--model.name", "./nothing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(flags) == 2
    assert capfd.readouterr().err == "mmalign: model.name './nothing': there is no such folder\n"


def test_values_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, told in (
        ("--generate.workers", "0", "generate.workers is 0; it must be 1 or more"),
        ("--generate.cpus_per_worker", "0", "generate.cpus_per_worker is 0.0; it must be a number above 0"),
        ("--generate.gpus_per_worker", "-1", "generate.gpus_per_worker is -1.0; it must be 0 or more"),
        ("--engine", "slurm", "engine"),
    ):
        assert main(words(tmp_path / "run", flag, value)) == 2
        assert told in capsys.readouterr().err
