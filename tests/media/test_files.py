"""Paths cannot leave the data folder; reads are bounded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mmalign.errors import MediaError
from mmalign.media.files import file_sha256, read_file, readable_name, safe_path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("https://example.org/cat.jpg", "nothing is downloaded"),
        ("s3://bucket/cat.jpg", "nothing is downloaded"),
        ("data:image/png;base64," + "A" * 500, "nothing is downloaded"),
        ("/etc/passwd", "absolute path"),
        ("C:/pictures/cat.jpg", "absolute path"),
        ("../cat.jpg", "leaves the data folder"),
        ("a/../../cat.jpg", "leaves the data folder"),
        ("a/..", "leaves the data folder"),
        ("cat\0.jpg", "NUL"),
        ("caf\udce9.jpg", "not UTF-8"),
        (r"caf\udce9.jpg", "not UTF-8"),
    ],
)
def test_paths_that_are_refused(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(MediaError, match=reason) as caught:
        safe_path(tmp_path, path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("path", ["cat.jpg", "a/b/cat.jpg", "a/./cat.jpg", "a..b/cat...jpg", "10:30.jpg"])
def test_paths_inside(tmp_path: Path, path: str) -> None:
    assert safe_path(tmp_path, path) == Path(os.path.realpath(tmp_path)) / Path(path)


def test_links_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / "data-outside"
    root.mkdir()
    outside.mkdir()
    (outside / "cat.jpg").touch()
    (root / "real.jpg").touch()
    (root / "inside.jpg").symlink_to("real.jpg")
    (root / "out.jpg").symlink_to(outside / "cat.jpg")
    (root / "folder").symlink_to(outside)
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert safe_path(root, "inside.jpg") == Path(os.path.realpath(root)) / "real.jpg"
    for path in ("out.jpg", "folder/cat.jpg", "folder/no-such.jpg"):
        with pytest.raises(MediaError, match="outside of the data folder"):
            safe_path(root, path)
    with pytest.raises(MediaError, match=r"a: (cannot be read|no such file)"):
        read_file(safe_path(root, "a"), "a", 100)


def test_the_data_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "cat.jpg").touch()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert safe_path(tmp_path / "data", "cat.jpg").is_file()


def test_reads_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert read_file(file, "file", 100) == b"x" * 100
    with pytest.raises(MediaError, match="file: has 100 bytes, more than the limit of 99"):
        read_file(file, "file", 99)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "file").write_bytes(b"x")
    reasons = {"folder.jpg": "is a folder", "pipe.jpg": "is not a regular file", "file/x": "no such file"}
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=f"{name}: {reason}"):
            read_file(tmp_path / name, name, 100)


def test_sha256(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert file_sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(file) == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(MediaError, match="No such file"):
        file_sha256(tmp_path / "absent")


def test_readable_names_can_be_written() -> None:
    assert readable_name("Zoë 写.jpg") == "Zoë 写.jpg"
    assert readable_name(os.fsdecode(b"caf\xe9.jpg")) == r"caf\udce9.jpg"
