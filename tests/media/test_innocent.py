"""No file is blamed for what the machine does: a child that is ended from outside, or that cannot be started."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmalign.errors import MediaError, RecipeError
from mmalign.media import image as images
from mmalign.media.guard import Guard
from mmalign.media.image import PictureLimits, open_picture
from mmalign.types import MediaRef
from tests.media.hostile import SIZE, encoded, quarters


@pytest.fixture
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    guard = Guard(getattr(request, "param", "mmalign.media.child"))
    monkeypatch.setattr(images, "GUARD", guard)
    yield guard
    guard.close()


def size_of(folder: Path, name: str, seconds: float = 300.0) -> tuple[int, int]:
    (folder / name).write_bytes(encoded(quarters(), "PNG"))
    return open_picture(folder / name, MediaRef(name), PictureLimits(decode_seconds=seconds)).image.size


@pytest.mark.parametrize("guard", ["tests.media.killed_child"], indirect=True)
def test_a_child_that_is_ended_from_outside_is_asked_once_more(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    assert size_of(tmp_path, "once.png") == SIZE
    with pytest.raises(MediaError, match=r"ever\.png: its decoder crashed \(SIGKILL\)"):
        size_of(tmp_path, "ever.png")
    assert not guard._busy


@pytest.mark.parametrize("guard", ["tests.media.no_such_child"], indirect=True)
def test_a_child_that_never_starts_costs_no_picture(guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not start: ModuleNotFoundError: No module named .*no_such_child"):
        size_of(tmp_path, "a.png")
    assert not guard._busy


@pytest.mark.parametrize("broken", ["mmalign.media.ledger.shared_memory", "mmalign.media.guard.subprocess.Popen"])
def test_a_machine_whose_limits_are_used_up_costs_no_picture(
    broken: str, guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(broken, refuse)
    with pytest.raises(RecipeError, match=r"cannot be started: Too many open files; .*ulimit -n"):
        size_of(tmp_path, "a.png")
    assert not guard._busy


def test_places_that_python_passes_over_are_passed_over(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    assert size_of(tmp_path, "a.png") == SIZE


def test_no_limit_is_a_limit_too(guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    assert size_of(tmp_path, "a.png", float("inf")) == SIZE
    assert size_of(tmp_path, "b.png", 1e300) == SIZE
    assert failed == []
