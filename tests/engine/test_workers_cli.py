"""`mmalign generate` with workers and on Ray: the embedded model's pairs, byte for byte those of one process."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mmalign import pipeline
from mmalign.cli import main
from mmalign.pipeline import generating
from mmalign.recipe.load import load_recipe
from tests.engine.cases import pair_bytes
from tests.engine.crews import unloadable

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "image" / "stic.yaml"


def words(path: Path, *flags: str) -> list[str]:
    return ["generate", str(RECIPE), "--data.scenes", "6", "--model.device", "cpu", "--output", str(path), *flags]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("alone") / "run"
    assert main(words(path)) == 0
    return pair_bytes(path)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "flags",
    [
        ("--generate.batch_size", "7"),
        ("--engine", "ray", "--generate.cpus_per_worker", ".5", "--generate.batch_size", "7"),
    ],
)
def test_the_same_pairs(
    tmp_path: Path,
    alone: bytes,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "ray" in flags:
        pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert main(words(tmp_path / "run", "--generate.workers", "2", *flags)) == 0
    assert pair_bytes(tmp_path / "run") == alone
    progress = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("pairs: ")]
    assert progress == []  # neither Ray nor the workers have anything to say
    assert len(alone) > 5000
    left = {child.pid: child.name() for child in psutil.Process().children(recursive=True) if child.pid not in before}
    assert left == {}


def test_a_model_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generating, "open_on_machine", unloadable)
    assert main(words(tmp_path / "run", "--generate.workers", "2")) == 2
    assert capfd.readouterr().err == "mmalign: model.name 'no/model': there is no such folder\n"


def test_values_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, told in (
        ("--generate.workers", "0", "generate.workers is 0; it must be 1 or more"),
        ("--generate.cpus_per_worker", "0", "generate.cpus_per_worker is 0.0; it must be a number above 0"),
        ("--generate.gpus_per_worker", "-1", "generate.gpus_per_worker is -1.0; it must be 0 or more"),
        ("--generate.hung_s", "0", "generate.hung_s is 0.0; it must be a number of seconds above 0"),
        ("--generate.gpus_per_worker", "one", "generate.gpus_per_worker: expected a number. Got value: one"),
        ("--generate.retry_quarantined", "maybe", "retry_quarantined: expected true or false. Got value: maybe"),
        ("--engine", "slurm", "engine"),
    ):
        assert main(words(tmp_path / "run", flag, value)) == 2
        assert told in capsys.readouterr().err


def test_keys_of_ray_are_not_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe(RECIPE, ["--generate.ray_address", "auto", "--output", str(tmp_path)])
    assert pipeline.crew_of(recipe) is None
    assert caplog.messages == ["generate.ray_address counts with engine: ray only; this run is made on this machine"]
