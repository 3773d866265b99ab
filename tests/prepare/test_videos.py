"""`mmalign prepare videos` and the other ways in which clips become samples."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmalign.cli import main
from mmalign.errors import DataError, MediaError
from mmalign.media.files import file_sha256
from mmalign.media.frames import FrameChoice
from mmalign.media.read import MediaLimits, open_media
from mmalign.prepare import prepare_videos
from mmalign.samples import SCHEMA, data_folder, list_clips, read_samples
from mmalign.types import Clip, MediaRef, SampleRow
from tests.media.clips import Film, number_of, write_broken
from tests.media.hostile import encoded, quarters

GOOD = (
    Film("a.mp4", "libx264"),
    Film("odd.webm", "libvpx", size=(191, 97)),
    Film("SHOUT.GIF", "gif", num=5, pixels="rgb8"),
    Film("turned.mov", "libx264", rotation=90),
)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    root = tmp_path / "videos"
    (root / "below").mkdir(parents=True)
    for film in GOOD:
        film.write(root)
    (root / "below" / "again Ünï.mp4").write_bytes((root / "a.mp4").read_bytes())
    refused = write_broken(root)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.mp4").write_bytes((root / "a.mp4").read_bytes())
    (root / "out").symlink_to(outside)
    (root / "link out.mp4").symlink_to(outside / "x.mp4")
    (root / "notes.txt").write_text("no video")
    (root / "picture.png").write_bytes(encoded(quarters(), "PNG"))
    (root / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    # A folder with a video's name is walked, not taken for a video; a link to a folder is not even walked.
    del refused["folder.mp4"]
    return root, refused | {"link out.mp4": "outside of the data folder", r"caf\udce9.mp4": "not UTF-8"}


def test_every_good_video_becomes_a_sample(folder: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, refused = folder
    output = tmp_path / "out" / "samples.parquet"
    calls: list[tuple[int, int]] = []
    summary = prepare_videos(root, output, prompt="What?", workers=2, progress=lambda done, n: calls.append((done, n)))
    good = sorted([*(film.name for film in GOOD), "below/again Ünï.mp4"])
    total = len(good) + len(refused)
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert (summary.num_samples, summary.num_rejected, summary.num_duplicates) == (len(good), len(refused), 1)
    assert summary.num_others == 2  # the notes and the picture; a link to a folder is not followed

    table = pq.read_table(output)
    assert table.schema.equals(SCHEMA)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert list(rows) == good
    for film in GOOD:
        row = rows[film.name]
        assert (row["width"], row["height"], row["frames"]) == (*film.size, film.num)
        assert (row["fps"], row["seconds"]) == pytest.approx((25, film.num / 25), rel=3e-3)
        assert row["sha256"] == file_sha256(root / film.name)
        assert json.loads(row["media"]) == [{"type": "video", "path": film.name, "sha256": row["sha256"]}]
    assert [rows[name]["format"] for name in ("a.mp4", "odd.webm", "SHOUT.GIF")] == ["h264", "vp8", "gif"]
    assert rows["below/again Ünï.mp4"]["duplicate_of"] == "a.mp4"

    assert summary.rejected is not None
    lines = [json.loads(line) for line in summary.rejected.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(refused)
    for line in lines:
        assert refused[line["path"]] in line["reason"]
        assert not line["reason"].startswith(line["path"])

    limits = MediaLimits(frames=FrameChoice(num_frames=3))
    for sample in read_samples(output):
        (clip,) = open_media(sample, data_folder(output), limits).media
        assert isinstance(clip, Clip)
        assert clip.ref.frames is not None
        assert [number_of(image) for image in clip.images] == list(clip.ref.frames.numbers)


def test_from_the_command_line(
    tmp_path: Path, folder: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, refused = folder
    output = tmp_path / "samples.parquet"
    command = ["prepare", "videos", str(root), "--output", str(output)]
    assert main([*command, "--dry-run"]) == 0
    assert f"would read {5 + len(refused)} videos from {root}" in capsys.readouterr().out
    assert not output.exists()
    assert main(command) == 0
    assert f"5 samples -> {output}; {len(refused)} refused" in capsys.readouterr().out.replace("\n", " ")
    assert main(["prepare", "videos", str(root / "a.mp4"), "--output", str(output)]) == 2
    assert capsys.readouterr().err.endswith(
        f"mmalign: {root / 'a.mp4'}: is not a folder; `mmalign prepare videos` takes a folder of videos\n"
    )


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("a.mp4", "s.parquet", "a.mp4: is not a folder; `mmalign prepare videos` takes a folder of videos"),
        ("none", "s.parquet", "none: holds no videos (1 other files)"),
        (".", "s.csv", "s.csv: name the sample file with the ending .parquet"),
    ],
)
def test_a_dry_run_refuses_what_the_real_run_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, output: str, message: str
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").touch()
    command = ["prepare", "videos", str(tmp_path / source), "--output", str(tmp_path / output)]
    for words in (command, [*command, "--dry-run"]):
        assert main(words) == 2
        told = capsys.readouterr()
        assert told.err.splitlines()[-1].endswith(message)
        assert not told.out


def test_folders_without_a_good_video(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    (root / "a.png").write_bytes(encoded(quarters(), "PNG"))
    with pytest.raises(DataError, match=r"holds no videos \(1 other files\)"):
        prepare_videos(root, tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"holds no videos \(1 other files\); for its 1 pictures set data\.images"):
        list(read_samples(root, kind="video"))
    (root / "bad.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="none of 1 videos can be used"):
        prepare_videos(root, tmp_path / "s.parquet")


def test_a_folder_of_videos_needs_no_preparation(tmp_path: Path) -> None:
    for name in ("b.MKV", "a/c.webm", "a/d.gif", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["a/c.webm", "a/d.gif", "b.MKV"]
    assert list_clips(tmp_path).files == names
    assert list(read_samples(tmp_path, kind="video")) == [SampleRow(name, (MediaRef(name, "video"),)) for name in names]
    assert [row.id for row in read_samples(tmp_path)] == ["a/d.gif", "e.png"]


def test_rows_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"video": "a.mp4", "prompt": "What happens?"},
        {"videos": ["a.mp4", "b.mp4"]},
        {"image": "a.png", "video": "a.mp4", "id": "both"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    first, second, third = read_samples(path)
    assert first.media == (MediaRef("a.mp4", "video"),)
    assert first.id.startswith("a.mp4#")
    assert second.id == "a.mp4+b.mp4"
    assert third.media == (MediaRef("a.png"), MediaRef("a.mp4", "video"))
    with pytest.raises(MediaError, match=r"a\.mp4: no such file"):
        open_media(first, tmp_path, MediaLimits())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a", "videos": ["b"]}, "has both 'video' and 'videos'"),
        ({"video": 3}, "got 3 for a video"),
        ({"videos": "a"}, 'videos is "a", need a list'),
        ({"vidoe": "a"}, "did you mean 'video'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        list(read_samples(path))
    assert f"{path}:1: " in str(caught.value)
    assert message in str(caught.value)
