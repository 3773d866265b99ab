"""The run directory: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from mmalign.atomic import write_json, write_text
from mmalign.engine.environment import environment
from mmalign.engine.rundir import LOCK_NAME, RunDir, differences
from mmalign.errors import StoreError

RECIPE: dict[str, Any] = {
    "method": {"name": "stic", "p_bad_prompt": 0.5},
    "seed": 0,
    "data": {"images": Path("pics"), "limit": None},
    "model": {"name": "tiny", "device": "cpu"},
    "train": {"beta": 0.1, "betas": (0.9, 0.95)},
}
FREE = ("train", "model.device")


def changed(**sections: Any) -> dict[str, Any]:
    return {
        key: {**value, **sections.get(key, {})} if isinstance(value, dict) else sections.get(key, value)
        for key, value in RECIPE.items()
    }


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that cannot be written to; the superuser, who could, is somebody else for a while."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_the_recipe_is_written_once_and_the_same_one_is_accepted(tmp_path: Path) -> None:
    with RunDir(tmp_path / "a" / "b") as run:
        assert run.begin(RECIPE) == []
    path = tmp_path / "a" / "b" / "recipe.yaml"
    before = path.stat()
    with RunDir(tmp_path / "a" / "b") as run:
        assert run.begin(RECIPE, FREE) == []
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert yaml.safe_load(path.read_text()) == {
        **RECIPE,
        "data": {"images": "pics", "limit": None},
        "train": {"beta": 0.1, "betas": [0.9, 0.95]},
    }


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (changed(seed=1), ["seed: 0 -> 1"]),
        (changed(method={"name": "apasi"}), ['method.name: "stic" -> "apasi"']),
        (changed(data={"limit": 5}, train={"beta": 1.0}), ["data.limit: null -> 5"]),
        ({**RECIPE, "rounds": 2}, ["rounds: (none) -> 2"]),
        ({key: value for key, value in RECIPE.items() if key != "seed"}, ["seed: 0 -> (none)"]),
        (changed(seed=True), ["seed: 0 -> true"]),
    ],
)
def test_a_changed_recipe_is_refused_with_what_changed(tmp_path: Path, recipe: dict[str, Any], says: list[str]) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RECIPE)
        run.round_path(0)
        before = run.path.joinpath("recipe.yaml").read_text()
        with pytest.raises(StoreError) as refused:
            run.begin(recipe, FREE)
        message = str(refused.value)
        assert all(text in message for text in says)
        assert "train" not in message
        assert "\n" not in message
        assert run.path.joinpath("recipe.yaml").read_text() == before


def test_free_keys_may_change_and_the_file_follows(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RECIPE)
        assert run.begin(changed(train={"beta": 0.2}, model={"device": "cuda"}), FREE) == [
            'model.device: "cpu" -> "cuda"',
            "train.beta: 0.1 -> 0.2",
        ]
        assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["train"]["beta"] == 0.2
        run.round_path(0)
        with pytest.raises(StoreError):
            run.begin(changed(model={"name": "other"}), FREE)


def test_a_recipe_that_made_nothing_binds_nobody(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RECIPE)
        assert run.begin(changed(model={"name": "other"}), FREE) == ['model.name: "tiny" -> "other"']
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["model"]["name"] == "other"


def test_the_environment_is_recorded_with_every_start(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RECIPE)
        path = tmp_path / "environment.json"
        first = json.loads(path.read_text())
        write_json(path, {**first, "packages": {**first["packages"], "numpy": "0.0"}})
        run.begin(RECIPE)
    record = json.loads(path.read_text())
    assert set(record) == {"python", "platform", "host", "cpus", "packages", "git", "starts"}
    assert record["packages"]["numpy"] == first["packages"]["numpy"]
    assert len(record["starts"]) == 2
    assert record["starts"][1]["changed"] == [f'packages.numpy: "0.0" -> "{first["packages"]["numpy"]}"']
    assert record["starts"][0]["command"]


def test_a_repository_with_names_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    odd = tmp_path / os.fsdecode(b"\xff.txt")
    try:
        odd.touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init"], ["config", "core.quotepath", "false"], ["add", "."], [*identity, "commit", "-m", "a"]):
        subprocess.run(["git", *words], check=True, capture_output=True)
    odd.write_text("changed")
    git = environment()["git"]
    assert (len(git["commit"]), git["dirty"]) == (40, True)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"not a run directory, it holds other files \(such as photo.jpg\)"):
        RunDir(tmp_path)
    with pytest.raises(StoreError, match="a run directory is a folder, this is a file"):
        RunDir(tmp_path / "photo.jpg")
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line() -> None:
    with unprivileged() as folder:
        for path in (folder, folder / "run"):
            with pytest.raises(StoreError) as refused:
                RunDir(path)
            assert str(refused.value) == (
                f"{path}: cannot be written (permission denied); make the folder writable or name another output"
            )


def test_the_lock_holds_within_a_process_and_ends_with_close(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()} on "):
        RunDir(tmp_path)
    run.close()
    run.close()
    RunDir(tmp_path).close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    read, write = os.pipe()
    is_up, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b".")
        os.close(write)
        os.read(read, 1)  # Until the parent closes its end, also when an assertion fails.
        os._exit(0)
    os.close(read)
    os.read(is_up, 1)  # The child lets go of the lock as soon as it runs, which may be after the parent goes on.
    try:
        with pytest.raises(StoreError):
            RunDir(tmp_path)  # The child has closed its copy, and that has not opened the lock.
        run.close()
        RunDir(tmp_path).close()
    finally:
        for end in (write, is_up, tell):
            os.close(end)
        os.waitpid(child, 0)


def test_files_are_whole_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "first ü\n")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"cannot be written \(no space left on device\); free some space"):
            write_text(path, "second")
    assert path.read_bytes() == "first ü\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_a_broken_record_is_told_in_one_line(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RECIPE)
        (tmp_path / "environment.json").write_text("{")
        with pytest.raises(StoreError, match=r"environment\.json: cannot be read"):
            run.begin(RECIPE)
        (tmp_path / "recipe.yaml").write_text("a: [")
        with pytest.raises(StoreError, match=r"recipe\.yaml: cannot be read"):
            run.begin(RECIPE)


def test_differences_name_the_innermost_keys() -> None:
    old, new = {"a": {"b": [1, 2], "c": 1}, "d": 1}, {"a": {"b": [1, 3], "c": 1}, "d": {"e": 1}}
    assert differences(old, new) == {"a.b": "a.b: [1, 2] -> [1, 3]", "d": 'd: 1 -> {"e": 1}'}
    assert differences(old, old) == {}


def test_a_lock_that_a_dead_process_leaves_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    RunDir(tmp_path).close()
    left = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
    fcntl.flock(left, fcntl.LOCK_EX)
    timer = threading.Timer(0.3, os.close, [left])
    timer.start()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other := os.open(tmp_path / LOCK_NAME, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    RunDir(tmp_path).close()
    timer.join()
    os.close(other)
