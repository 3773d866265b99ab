"""Kills and full disks where folders are written: merged models, conversions, sample files, caches."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmalign import atomic
from tests.engine.kills import FULL, Job, Nursery, left_over, unreadable

#: What is no change where the disk fails: removing goes on, and what is not there is not removed.
REMOVING = ("os.remove", "os.rmdir")


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for what is unfinished."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if not Path(name).name.startswith(".partial-")}


def broken_off(job: Job, run: Path, places: dict[str, int], act: str) -> Iterator[str]:
    """Break a job off at each place, at the last time that it comes there, over and over in the same folder."""
    for place, times in places.items():
        if act != "kill" and place.startswith(REMOVING):
            continue
        ended = job.start(run, moment={"place": place, "at": times, "act": act}).end()
        assert ended.is_killed if act == "kill" else FULL in ended.told, (place, ended)
        if act != "kill" and run.exists():
            assert left_over(run) == [], place
        yield place


# Folders that take the place of others --------------------------------------------------------------------------------


@pytest.mark.parametrize(("act", "exchanges"), [("kill", True), ("ENOSPC", True), ("kill", False)])
def test_a_folder_takes_the_place_of_another(exchanges: bool, act: str, nursery: Nursery, tmp_path: Path) -> None:
    run, version = tmp_path / "run", "old"
    job = Job(nursery, "replaced", lambda run: [str(run), version, str(exchanges)], files)
    run.mkdir()
    assert job.start(run).end().status == 0
    old, version = job.kept(run / "model"), "new"
    places = job.start(run).end().places
    new = job.kept(run / "model")
    seen = []
    for told in broken_off(job, run, places, act):
        seen.append(files(run / "model") if (run / "model").exists() else None)
        assert seen[-1] in (old, new) or not exchanges, told
        shutil.rmtree(run / "model", ignore_errors=True)
        version = "old"
        assert job.start(run).end().status == 0
        version = "new"
    assert old in seen
    assert new in seen
    assert seen.count(None) == (0 if exchanges else 1)
    assert job.start(run).end().status == 0
    assert job.kept(run / "model") == new
    assert left_over(run) == []


def test_two_names_change_places_here(tmp_path: Path) -> None:
    """Where they cannot, the tests above see nothing."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic._exchanged(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    assert not atomic._exchanged(tmp_path / "a", tmp_path / "none")


def test_a_merged_model_is_the_old_or_the_new_one(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    run, merged = tmp_path / "run", tmp_path / "run" / "merged"
    shutil.copytree(folder / "warm", run)
    job = Job(nursery, "command", lambda run: ["merge", str(run)], lambda run: files(run / "merged"))
    adapter = files(run / "train" / "adapter")
    moments: list[tuple[str, int, str]] = [
        ("os.mkdir .partial-merged", 1, "kill"),
        ("fsync .partial-merged/model.safetensors", 1, "ENOSPC"),
        ("os.rename merged", 1, "kill"),  # from here on there is an old one, with a file of its own
        ("open .partial-merged/config.json", 1, "kill"),
        ("os.rename merged", 1, "ENOSPC"),
        ("os.rmdir .partial-merged", 1, "kill"),
    ]
    before: dict[str, bytes] | None = None
    for number, (place, at, act) in enumerate(moments):
        if number == 3:
            job.whole(run)
            new = job.kept(run)
            (merged / "note.txt").write_text("of the old one", encoding="utf-8")
            before = job.kept(run)
        ended = job.start(run, moment={"place": place, "at": at, "act": act}).end()
        assert ended.is_killed if act == "kill" else FULL in ended.told, (place, ended)
        after = files(merged) if merged.exists() else None
        assert after == (new if place.startswith("os.rmdir") else before), place
        assert files(run / "train" / "adapter") == adapter
    job.whole(run)
    assert job.kept(run) == new


# Conversions and sample files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["kill", "ENOSPC"])
def test_a_conversion_is_there_whole_or_not_at_all(act: str, nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    words = ("convert", str(folder / "warm"), "--to", "llamafactory", "--copy-media", "--output")
    job = Job(nursery, "command", lambda run: [*words, str(run / "out")], lambda run: files(run / "out"))
    places = job.whole(tmp_path / "unbroken").places
    wanted, run = job.kept(tmp_path / "unbroken"), tmp_path / "run"
    assert {"open .partial-out/pairs.json", "os.rename out", "os.rename .partial-out/dataset_info.json"} <= set(places)
    for told in broken_off(job, run, places, act):
        if (run / "out").exists():
            assert job.kept(run) == wanted, told
            # Nothing is written over, not even by the same command.
            assert "exists and is not empty" in job.start(run).end().told
            shutil.rmtree(run / "out")
    rng = random.Random(0)
    for _ in range(3 if act == "kill" else 0):
        child = job.start(run)
        time.sleep(0.1 * rng.random())
        child.kill()
        child.end()
        if (run / "out").exists():
            assert job.kept(run) == wanted
            shutil.rmtree(run / "out")
    job.whole(run)
    assert job.kept(run) == wanted


@pytest.mark.parametrize(("kind", "act"), [("images", "kill"), ("text", "ENOSPC")])
def test_samples_are_there_whole_or_not_at_all(
    kind: str, act: str, nursery: Nursery, folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / kind
    if kind == "images":
        source.mkdir()
        shutil.copy(folder / "warm" / "scenes" / "scene-00000.png", source)
        (source / "bad.png").write_bytes(b"no picture")  # so that there is a list of what was refused
    else:
        source.write_text('{"prompt": "What is it?"}\n', encoding="utf-8")
    words = ("prepare", kind, str(source), "--output")
    job = Job(nursery, "command", lambda run: [*words, str(run / "samples.parquet")], files)
    places = job.whole(tmp_path / "unbroken").places
    wanted, run = job.kept(tmp_path / "unbroken"), tmp_path / "run"
    assert set(wanted) == {"samples.parquet", *(["samples.rejected.jsonl"] if kind == "images" else [])}
    for told in broken_off(job, run, places, act):
        if run.exists():
            assert job.kept(run).items() <= wanted.items(), told
    job.whole(run)
    assert job.kept(run) == wanted


# Caches ---------------------------------------------------------------------------------------------------------------


def rows(run: Path) -> dict[str, Any]:
    """Which rows the caches hold; their numbers are looked at by who reads them."""
    return {"features": sorted(path.name for path in run.glob("features/row-*"))}


@pytest.mark.parametrize("act", ["kill", "ENOSPC"])
def test_caches_on_disk_that_processes_share(act: str, nursery: Nursery, tmp_path: Path) -> None:
    job = Job(nursery, "cached", lambda run: [str(run)], rows)
    places = job.whole(tmp_path / "unbroken").places
    wanted = job.kept(tmp_path / "unbroken")
    assert {"open features/.partial-N", "fsync reference/key/.partial-part-N.safetensors"} <= set(places)
    for number, (place, times) in enumerate(places.items()):
        run = tmp_path / f"{number}"
        other = job.start(run) if act == "kill" else None
        at = (1 + times) // 2
        ended = job.start(run, moment={"place": place, "at": at, "act": act}).end()
        if other is not None:
            undisturbed = other.end()
            assert (undisturbed.status, undisturbed.err) == (0, ""), place
        if act == "kill":
            assert ended.is_killed or ended.status == 0, place  # the other one may have been faster
        elif ended.status:
            assert FULL in ended.err or "nothing more is written" in ended.err or "cannot be written to" in ended.err
        assert unreadable(run) == []
        again = job.start(run).end()
        assert (again.status, again.err) == (0, ""), place
        assert job.kept(run) == wanted, place
