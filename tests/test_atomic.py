"""Files appear whole or not at all, whoever else writes them and however often a writer was killed."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from mmalign.atomic import explained, replacing, sync_folder, writing, writing_bytes
from mmalign.errors import StoreError


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with writing(path) as stream:
        stream.write("nüw\n")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_bytes() == "nüw\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def break_off(written: int, error: BaseException) -> None:
    assert written == 3
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong"), OSError(errno.ENOSPC, "No space left")])
def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises((KeyboardInterrupt, ValueError, StoreError)) as caught, writing_bytes(path) as stream:
        break_off(stream.write(b"new"), error)
    assert caught.type is (StoreError if isinstance(error, OSError) else type(error))
    with pytest.raises(caught.type), writing(path) as text:
        break_off(text.write("new"), error)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".partial-a.txt").write_bytes(b"half of something longer")
    with writing(tmp_path / "a.txt") as stream:
        stream.write("whole")
    (tmp_path / ".partial-b").mkdir()
    (tmp_path / ".partial-b" / "half").touch()
    (tmp_path / ".partial-old-b").mkdir()
    with replacing(tmp_path / "b") as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a.txt", "b", "b/whole"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"


def test_writers_of_one_file_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    failed: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                with writing_bytes(path) as stream:
                    for _ in range(50):
                        stream.write(letter * 1000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            seen.add(path.read_bytes())
    for thread in threads:
        thread.join()
    assert failed == []
    assert seen <= {letter * 50_000 for letter in (b"a", b"b", b"c")}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(("number", "is_told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_flushes_no_folders(
    tmp_path: Path, number: int, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if is_told:
        with pytest.raises(StoreError, match="input/output error"), explained(tmp_path):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
