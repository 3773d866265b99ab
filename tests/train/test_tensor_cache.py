"""Tensors kept by key: bounded, found whole or not at all, by any number of processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.atomic import PREFIX
from mmalign.errors import TrainError
from mmalign.train.cache.tensor_cache import TensorCache

MANY = 1 << 30


def some(seed: int = 0, count: int = 100) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    return {"a": values.bfloat16().view(2, -1), "b": values.double(), "c": torch.tensor([3, -1]), "none": values[:0]}


def assert_same(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def files(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


def age(folder: Path, *names: str) -> None:
    """Make files as old as their place in `names`, the first the oldest."""
    for number, name in enumerate(names):
        when = time.time() - 1000 + number
        os.utime(folder / f"{name}.safetensors", (when, when))


def test_bits_come_back_in_memory_and_from_disk(tmp_path: Path) -> None:
    first = TensorCache(tmp_path / "new" / "folder", MANY, MANY)
    assert first.get("key") is None
    first.put("key", some())
    assert_same(first.get("key"), some())
    assert_same(TensorCache(tmp_path / "new" / "folder", MANY).get("key"), some())
    assert files(tmp_path / "new" / "folder") == ["key"], "nothing unfinished stays"


def test_files_of_another_user_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TensorCache(tmp_path, MANY).put("key", some())

    def refused(*given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert_same(TensorCache(tmp_path, MANY).get("key"), some())


def test_what_is_kept_is_a_copy(tmp_path: Path) -> None:
    cache, given = TensorCache(None, 0, MANY), some()
    cache.put("key", given)
    given["b"].zero_()
    assert_same(cache.get("key"), some())


def test_memory_keeps_what_came_first(tmp_path: Path) -> None:
    size = sum(value.nbytes for value in some().values())
    cache = TensorCache(None, 0, 2 * size)
    for key in "abca":
        cache.put(key, some())
    assert [cache.get(key) is not None for key in "abc"] == [True, True, False]
    assert TensorCache(None, 0, 0).get("a") is None


def test_nothing_lasts_that_should_not(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, MANY, MANY)
    cache.put("key", some(), lasts=False)
    assert_same(cache.get("key"), some())
    assert not files(tmp_path)


def test_the_folder_is_bounded_and_the_least_used_leave_first(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, MANY)
    cache.put("a", some())
    size = (tmp_path / "a.safetensors").stat().st_size
    small = TensorCache(tmp_path, 4 * size)
    for key in "bcd":
        small.put(key, some())
    age(tmp_path, *"abcd")
    assert small.get("a") is not None  # now the one that was used last
    small.put("e", some())
    assert files(tmp_path) == ["a", "c", "d", "e"]
    for number in range(20):
        small.put(f"more{number}", some(number))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * size
    assert_same(TensorCache(tmp_path, 4 * size).get("more19"), some(19))


def test_a_smaller_limit_holds_from_the_start(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, MANY)
    for key in "abc":
        cache.put(key, some())
    size = (tmp_path / "a.safetensors").stat().st_size
    age(tmp_path, *"abc")
    TensorCache(tmp_path, 2 * size)
    assert files(tmp_path) == ["c"]


def test_what_is_too_large_is_not_written(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, 1000)
    cache.put("small", some(count=10))
    cache.put("large", some(count=1000))
    assert files(tmp_path) == ["small"]


def test_what_others_write_is_noticed(tmp_path: Path) -> None:
    probe = TensorCache(tmp_path, MANY)
    probe.put("a", some())
    size = (tmp_path / "a.safetensors").stat().st_size
    one, other = TensorCache(tmp_path, 40 * size), TensorCache(tmp_path, 40 * size)
    for number in range(60):
        one.put(f"one{number}", some())
        other.put(f"other{number}", some())
        assert len(files(tmp_path)) <= 40 + 2 * 2, "each may be a thirty-second part behind"


def test_one_process_stays_below_the_limit(tmp_path: Path) -> None:
    """Also where a file is a small part of it."""
    TensorCache(tmp_path, MANY).put("a", some())
    cache = TensorCache(tmp_path, 100 * (tmp_path / "a.safetensors").stat().st_size)
    for number in range(130):
        cache.put(f"more{number}", some())
        assert len(files(tmp_path)) <= 100
    assert len(files(tmp_path)) > 85


@pytest.mark.parametrize("damage", ["empty", "half", "header", "one bit", "no checksum", "text", "a folder"])
def test_a_broken_file_counts_as_absent_and_is_replaced(damage: str, tmp_path: Path) -> None:
    TensorCache(tmp_path, MANY).put("key", some())
    path = tmp_path / "key.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-3] ^= 4
    elif damage == "no checksum":
        save_file({name: value for name, value in load_file(path).items() if name != "crc32"}, path)
        data = bytearray(path.read_bytes())
    changed = {"empty": b"", "half": data[: len(data) // 2], "header": data[:12], "text": b"not a file of tensors"}
    path.unlink()
    if damage == "a folder":
        path.mkdir()
        assert TensorCache(tmp_path, MANY).get("key") is None
        return
    path.write_bytes(bytes(changed.get(damage, data)))
    cache = TensorCache(tmp_path, MANY)
    assert cache.get("key") is None
    cache.put("key", some(1))
    assert_same(TensorCache(tmp_path, MANY).get("key"), some(1))


def test_unfinished_files_of_killed_processes_go_in_time(tmp_path: Path) -> None:
    left, fresh = tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}fresh"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    TensorCache(tmp_path, MANY)
    assert not left.exists()
    assert fresh.exists(), "another process may be writing it"


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainError, match=r"^train\.feature_cache '.*file' cannot be written to: .*$") as caught:
        TensorCache(tmp_path / "file", MANY)
    assert "\n" not in str(caught.value)


def test_trouble_with_the_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path, MANY, MANY)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for key in "ab":
        cache.put(key, some())
        assert_same(cache.get(key), some())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No space left" in record.message
    assert not files(tmp_path)


def write_again_and_again(folder: Path, size: int, is_enough: Callable[[], bool] = lambda: True) -> None:
    """Write the same twenty keys, more than fit, 60 times and until it is enough; what is found is right."""
    turn = 0
    while turn < 60 or not is_enough():
        value = torch.full((500,), float(turn % 20))
        found = TensorCache(folder, 15 * size).get(f"k{turn % 20}")
        assert found is None or torch.equal(found["x"], value)
        TensorCache(folder, 15 * size).put(f"k{turn % 20}", {"x": value})
        turn += 1
        time.sleep(0.005)


def test_processes_that_write_the_same_keys(tmp_path: Path) -> None:
    TensorCache(tmp_path, MANY).put("k0", {"x": torch.zeros(500)})
    size = (tmp_path / "k0.safetensors").stat().st_size
    code = "import sys; from pathlib import Path; from tests.train.test_tensor_cache import write_again_and_again as w"
    call = [sys.executable, "-c", f"{code}; w(Path({str(tmp_path)!r}), {size})"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as other:
        write_again_and_again(tmp_path, size, lambda: other.poll() is not None)
        errors = other.communicate()[1]
    assert (other.returncode, errors) == (0, "")
    assert len(files(tmp_path)) <= 15 + 2
    assert not [name for name in files(tmp_path) if name.startswith(PREFIX)]
